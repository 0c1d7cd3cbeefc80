"""What a build or a compaction tells at its end, or of a disk that is full."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sgrec_torchrec.files.full_disk import FULL, NoSpaceError
from sgrec_torchrec.reward_table.manifest import SegmentFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build or a compaction wrote."""

    segment: str
    num_rows: int
    """Rows read."""
    num_duplicates: int
    """Rows that agreed with another row, or gave way to it by ``on_conflict``."""
    num_pairs: int
    num_users: int
    num_items: int
    num_replaced_users: int
    """Users whose older pairs no longer count: judged at another prefix now."""
    num_bytes: int
    peak_disk_bytes: int
    """Runs and finished files together, at their most."""
    seconds: float


def report_of(
    facts: SegmentFacts, num_rows: int, peak_disk_bytes: int, seconds: float
) -> BuildReport:
    """The report of a segment just published."""
    num_bytes = sum(file.num_bytes for file in facts.files.values())
    return BuildReport(
        segment=facts.name,
        num_rows=num_rows,
        num_duplicates=num_rows - facts.num_pairs,
        num_pairs=facts.num_pairs,
        num_users=facts.num_users,
        num_items=facts.num_items,
        num_replaced_users=facts.num_replaced_users,
        num_bytes=num_bytes,
        peak_disk_bytes=max(peak_disk_bytes, num_bytes),
        seconds=seconds,
    )


@contextmanager
def told_of_full_disk(folder: Path) -> Iterator[None]:
    """Say what a full disk means for the table in ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, errno.EFBIG):
            raise
        raise NoSpaceError(
            f"{folder}: no space to build the table ({error.strerror}); free 24 bytes "
            "a pair, or choose another folder. Nothing was changed",
        ) from error
