"""A progress bar with rate and time left, on the main rank only."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

from sgrec_torchrec.distributed.main_rank import is_main_rank

Item = TypeVar("Item")
_is_silent = False


def progress(
    iterable: Iterable[Item],
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
) -> Iterator[Item]:
    """Yield from ``iterable`` while showing how far and how fast it goes.

    Where standard error is not a terminal (a log file, CI), it prints a line every
    30 s at most; of a single step it tells nothing. Ranks do not communicate.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if total == 1:
        yield from iterable
        return
    yield from _bar(iterable, description=description, total=total, unit=unit)


def progress_of(*, description: str, total: int, done: int, unit: str) -> Any:
    """A bar that the caller moves by ``update(n)``, and closes; a context manager.

    Args:
        done: what an earlier run did: neither rate nor time left count it.
    """
    return _bar(None, description=description, total=total, unit=unit, initial=done)


def say_nothing() -> None:
    """Show no bars in this process: another one shows how far its part has come."""
    global _is_silent
    _is_silent = True


def _bar(iterable: Iterable[Item] | None, *, description: str, **shown: Any) -> Any:
    interval_s = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(
        iterable,
        desc=description,
        disable=_is_silent or not is_main_rank(),
        mininterval=interval_s,
        maxinterval=max(10.0, interval_s),
        **shown,
    )
