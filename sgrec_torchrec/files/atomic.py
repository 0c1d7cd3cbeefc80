"""Writes that are whole or absent: a temporary name beside it, then a rename."""

import fcntl
import glob
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sgrec_torchrec.files.full_disk import naming_a_full_disk
from sgrec_torchrec.files.room import nearest

FRESH_S = 60.0
"""A folder younger than that may be its writer's, who has not locked it yet."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes ``path``, on error it goes.

    Raises:
        FileNotFoundError: naming the folder, where it cannot be made or written.
        NoSpaceError: where what is written finds the disk full.
    """
    temporary = _temporary_beside(path)
    try:
        with naming_a_full_disk(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it replaces ``path``, on error it goes.

    Raises:
        FileNotFoundError: naming the folder, where it cannot be made or written.
        NoSpaceError: where what is written finds the disk full.
    """
    with working_folder(path) as temporary:
        yield temporary
        retired = _temporary_beside(path)
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Yield a folder for what is written on the way to ``path``, beside it; it goes.

    What processes that were killed have left of the same goes first.

    Raises:
        FileNotFoundError: naming the folder, where it cannot be made or written.
        NoSpaceError: where what is written finds the disk full.
    """
    folder = _temporary_beside(path)
    _sweep(path)
    try:
        with naming_a_full_disk(path):
            folder.mkdir()
            with _locked(folder):
                yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path) -> None:
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > FRESH_S:
                with _locked(folder) as is_ours:
                    if is_ours:
                        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Yields whether the lock is had; the system takes it from who is killed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another has it, or the file system has no locks
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextmanager
def gone_on_error(folder: Path) -> Iterator[None]:
    """What is half written would keep a full disk full."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_writable(folder: Path) -> None:
    """Raise before the work whose outcome could not be kept in the folder.

    Raises:
        FileNotFoundError: naming the folder that is a file, or that may not be written.
    """
    place = nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise FileNotFoundError(
            f"cannot write {folder}: {place} is no folder that this user may write; "
            "choose another output folder"
        )


def next_aside(path: Path) -> Path:
    """The first of ``path.1``, ``path.2``, ... that is not taken."""
    places = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def set_aside(path: Path) -> Path:
    """Move a folder to its ``next_aside``, whole; returns where it is now."""
    place = next_aside(path)
    path.rename(place)
    return place


def _temporary_beside(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileNotFoundError(
            f"cannot write {path}: {error.strerror}; choose another output folder"
        ) from error
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as sorted, indented JSON; NaN is refused."""
    with atomic_file(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Hex digest of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
