"""Is there room on a disk? Asked before the work whose outcome would not fit on it."""

import shutil
from collections.abc import Iterable
from pathlib import Path

GIB = 1 << 30


def check_room(folder: Path, num_bytes: int, of: str) -> None:
    """Raise where the file system of a folder has less than so many bytes free.

    Args:
        folder: need not be there yet.
        of: what they are needed for, and what else to lower.

    Raises:
        OSError: telling what is free, what is needed, and what to set.
    """
    free = shutil.disk_usage(nearest(folder)).free
    if num_bytes > free:
        raise OSError(
            f"{folder}: {gib(free)} are free and about {gib(num_bytes)} needed for "
            f"{of}; make room, or take another disk by --set out_dir="
        )


def nearest(path: Path) -> Path:
    """The path itself, or the closest of its parents that is there."""
    whole = path.resolve()
    return next(one for one in (whole, *whole.parents) if one.exists())


def bytes_below(folders: Iterable[Path]) -> int:
    """Of all files in them."""
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def gib(num_bytes: int) -> str:
    """A size to be read.

    >>> gib(5 << 28)
    '1.25 GiB'
    """
    return f"{num_bytes / GIB:.3g} GiB"
