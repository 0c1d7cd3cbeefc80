"""Where an importer finds its input: a path, or a name below $SGREC_DATA."""

import os
from pathlib import Path

from sgrec_torchrec.config.registry import IMPORTERS

PACKAGED = ("movielens", "complete-journey")
"""Sources that read an installed package, not a path."""

_HOW_TO_GET = {
    "minionerec": (
        "clone github.com/AkaliKong/MiniOneRec and give its data/Amazon folder"
    ),
    "sequences": (
        "give a folder with user_sequence.txt and item_text.txt, as in the data of "
        "github.com/agiresearch/IDGenRec"
    ),
    "canonical": "make one with `sgrec import`",
}


def data_root() -> Path:
    """$SGREC_DATA, else ``../shared/data`` beside the project's root."""
    given = os.environ.get("SGREC_DATA")
    if given:
        return Path(given)
    return Path(__file__).resolve().parents[3].parent / "shared" / "data"


def resolve_path(path: str | None, source: str) -> Path:
    """``path`` where it exists, else the entry of that name below the data root.

    Raises:
        ValueError: where no path is given.
        FileNotFoundError: naming both places and how to get the data.
    """
    how = _HOW_TO_GET[source]
    if path is None:
        raise ValueError(f"log.path: the {source} importer needs one; {how}")
    for candidate in (Path(path), data_root() / path):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"log.path = {path!r}: neither {Path(path).absolute()} nor "
        f"{data_root() / path} exists; set SGREC_DATA to the folder that holds it, "
        f"or {how}"
    )


def fingerprint(source: str, path: str | None) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that an importer reads: new ones import anew.

    What a package's importer takes as a path need be no file: then there are none.

    Raises:
        ValueError, FileNotFoundError: as ``resolve_path``, or for a path that the
            source does not read.
    """
    if path is None:
        return []
    if source not in IMPORTERS.built_in and not Path(path).exists():
        return []
    if source in PACKAGED:
        raise ValueError(
            f"log.path = {path!r}: the {source} log comes with a package; leave "
            "log.path None, or choose another log.source"
        )
    root = resolve_path(path, source) if source in _HOW_TO_GET else Path(path)
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    return [
        (
            str(file.relative_to(root.parent)),
            file.stat().st_size,
            file.stat().st_mtime_ns,
        )
        for file in files
        if file.is_file()
    ]
