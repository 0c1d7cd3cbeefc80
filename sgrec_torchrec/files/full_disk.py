"""A full disk, said as one: whoever writes has another way to say it, or none."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sgrec_torchrec.files.room import nearest

FULL = (errno.ENOSPC, errno.EDQUOT)
SAID = re.compile(
    r"no space left|quota exceeded|\d+ requested and \d+ written|PytorchStreamWriter",
    re.IGNORECASE,
)
"""By the operating system, numpy and torch."""
MAX_CAUSES = 8


class NoSpaceError(OSError):
    """Names what could not be written, and the mend."""


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """An error that came of a full disk becomes one that names the file and the mend.

    Raises:
        NoSpaceError: in its place. Any other error stays as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NoSpaceError) or not is_full_disk(error):
            raise
        raise _no_room(path, f"no space left to write {path}") from error


def is_full_disk(error: BaseException | None) -> bool:
    """Does the error, or one that it came from, speak of a full disk?"""
    for _ in range(MAX_CAUSES):
        if error is None:
            return False
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if not isinstance(error, UnicodeError) and SAID.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def failed_write(path: Path, error: BaseException, said: str) -> OSError:
    """What to raise instead of an error that only its library understands.

    Args:
        said: what failed, in the words of whoever wrote.
    """
    return _no_room(path, said) if is_full_disk(error) else OSError(said)


def _no_room(path: Path, said: str) -> NoSpaceError:
    place = nearest(path.resolve().parent)
    free = shutil.disk_usage(place).free / 2**20
    return NoSpaceError(
        f"{said} ({free:,.1f} MiB are free in {place}): make room there, or choose "
        "another output folder; what was whole is as it was"
    )
