"""Tasks: a plain record -> one folder, written whole, by a pure function of its files.

A task reads files and writes files. Its folder says what it was made from, so a task
that is done is not done again, and one that was lost with its worker can be.
"""

import dataclasses
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sgrec_torchrec.files.atomic import atomic_folder, sha256_file
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.origin import code_key
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import (
    DamagedError,
    Fields,
    OtherVersionError,
    read_sealed,
    write_sealed,
)

FORMAT_VERSION = 1
MEND = "start the command again: it makes what is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a function is to make; kinds of tasks add their settings as fields."""

    out: Path
    """The folder that it makes. All hosts see it, and the inputs, by this path."""
    inputs: tuple[Path, ...]
    """Manifests of the folders that it reads: they hold the sums of all else there."""


Kind = TypeVar("Kind", bound=Task)
Work = Callable[[Kind, Path], Mapping[str, object]]
"""(task, folder to write into) -> facts for its readers, as JSON values. A function of
a module: workers find it by name."""


def task_key(function: Work[Any], task: Task) -> str:
    """Of the code, the settings and what the inputs hold; not of where these lie.

    Raises:
        FileNotFoundError: naming the input that is not there.
    """
    places = {field.name for field in dataclasses.fields(Task)}
    names = {field.name for field in dataclasses.fields(task)} - places
    return content_key(
        {
            "function": f"{function.__module__}.{function.__qualname__}",
            "code": code_key(),
            "inputs": [sha256_file(path) for path in task.inputs],
            "settings": {name: getattr(task, name) for name in sorted(names)},
        }
    )


def is_done(function: Work[Kind], task: Kind) -> bool:
    """Is the task's folder there with all its files, made from the same?"""
    try:
        was = read_part(task.out, {})
        sizes = {name: (task.out / name).stat().st_size for name in was["files"]}
    except (FileNotFoundError, DamagedError, OtherVersionError):
        return False
    is_whole = all(was["files"][name]["bytes"] == size for name, size in sizes.items())
    return is_whole and bool(was["made_from"] == task_key(function, task))


def do(function: Work[Kind], task: Kind, code: str) -> None:
    """Do a task: its folder appears with its last file, the manifest.

    Args:
        code: ``code_key`` of the process that gives it.

    Raises:
        FileNotFoundError: where this host does not see the folders of the task.
        ValueError: where it runs another version of the package.
    """
    host = socket.gethostname()
    if code != code_key():
        raise ValueError(
            f"host {host} has another version of sgrec_torchrec than the process that "
            "asks it: install one version on all hosts"
        )
    for place in (task.out.parent, *task.inputs):
        if not place.exists():
            raise FileNotFoundError(
                f"host {host} does not see {place}: all hosts need the folder of the "
                "runs, by one path"
            )
    with atomic_folder(task.out) as folder:
        facts = function(task, folder)
        sums = {
            path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in sorted(folder.iterdir())
        }
        about = {
            "format_version": FORMAT_VERSION,
            "made_from": task_key(function, task),
            "files": sums,
        }
        write_sealed(folder / MANIFEST, {**facts, **about})


def read_part(folder: Path, fields: Fields) -> dict[str, Any]:
    """What the manifest of a done task says.

    Args:
        fields: the facts that are asked for, and their types.

    Raises:
        FileNotFoundError, DamagedError, OtherVersionError: as ``read_sealed``.
    """
    known = {"made_from": str, "files": dict, **fields}
    return read_sealed(
        folder / MANIFEST, known, format_version=FORMAT_VERSION, mend=MEND
    )


def checked_file(folder: Path, name: str) -> Path:
    """A file of a done task, after its bytes were compared with their sum.

    Raises:
        FileNotFoundError, DamagedError: naming the file.
    """
    facts, path = read_part(folder, {}), folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {MEND}")
    if facts["files"].get(name, {}).get("sha256") != sha256_file(path):
        raise DamagedError(f"{path} is damaged (sha256): {MEND}")
    return path
