"""A progress bar with rate and time left, on the main rank only."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from sgrec_torchrec.distributed.launch import is_main_rank

Item = TypeVar("Item")


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
    interval_s = 0.2 if sys.stderr.isatty() else 30.0
    bar = tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        disable=not is_main_rank(),
        mininterval=interval_s,
        maxinterval=max(10.0, interval_s),
    )
    yield from bar
