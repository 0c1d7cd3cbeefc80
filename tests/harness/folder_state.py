"""What a folder holds: to be compared before and after a call that harms nothing."""

from pathlib import Path

from sgrec_torchrec.files.atomic import sha256_file


def folder_state(folder: Path) -> dict[str, str]:
    """Path below the folder -> sum of the file, or where the link leads."""
    state = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            state[name] = f"-> {path.readlink()}"
        elif path.is_file():
            state[name] = sha256_file(path)
        else:
            state[name] = "folder"
    return state
