"""What preparing was measured to cost, as data: ``prepare_plan`` extrapolates from it.

All figures stand in benchmarks/results/prepare_epyc-2core_20261130.md: generated logs
with 10 events an item and 20 a user, default settings, one thread of an AMD EPYC. A log
of "1e6 events" there holds 0.958e6.
"""

from dataclasses import dataclass

MOST = 10**13
"""Events, items or users that a plan takes."""
EVENTS_PER_USER = 20
"""Of the generated logs: assumed where nobody says how many users there are."""
LIBRARIES_GIB = 0.7
"""What a process holds before it holds anything of a log."""
IMPORT_LIMIT_GIB = 2.0
"""What DuckDB may take beside that; it spills to disk beyond."""
ROW_CPU_S = 0.9e-3
"""To gather the evidence of a row."""
MEASURED_CODES, MEASURED_LEVELS = 256, 3
"""Of the tokens that were measured; k-means compares each item with every code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One stage at the largest log that it was measured at, by the code of now."""

    events: float = 0.0
    items: float = 0.0
    """It grows with these, linearly; with the one that grew more, where both stand."""
    cpu_s: float
    rows: int = 0
    """Rows gathered in that time, whose number settings bound."""
    peaks: tuple[tuple[float, float], tuple[float, float]] | None = None
    """(events, GiB) of two logs: memory follows the line through them."""


MEASURED = {
    "import": Measured(events=3.83e6, items=4e5, cpu_s=13.1),
    "split": Measured(
        events=3.83e6,
        items=4e5,
        cpu_s=7.2,
        peaks=((0.958e6, 0.803), (3.83e6, 1.085)),
    ),
    "pairs": Measured(events=0.958e6, cpu_s=3.0),
    # On a busy machine, and less 30 for its pairs.
    "graph": Measured(
        events=9.58e6,
        items=1e6,
        cpu_s=516.0,
        peaks=((0.958e6, 1.25), (9.58e6, 2.44)),
    ),
    # On a busy machine.
    "texts": Measured(
        events=0.958e6,
        items=1e5,
        cpu_s=7.5,
        peaks=((0.0958e6, 0.765), (0.958e6, 0.898)),
    ),
    # Both before they were tasks, and less 7.5 for the texts that each compared. The
    # larger peak is of 3 folds in 5: it did not come farther.
    "evidence": Measured(
        events=0.958e6,
        items=1e5,
        cpu_s=89.1,
        rows=20_000,
        peaks=((0.958e6, 1.77), (9.58e6, 2.39)),
    ),
    # On a busy machine.
    "teacher": Measured(events=0.958e6, items=1e5, cpu_s=178.5, rows=100_000),
    # Of given vectors (tokens.source=embedding) alone.
    "tokens": Measured(items=1e5, cpu_s=15.4),
}
EVENT_BYTES, ITEM_BYTES = 8.1, 286.0
"""Of the imported log: an event, and an item with 64 floats and a title of 3 words."""
SPLIT_EVENT_BYTES, SPLIT_USER_BYTES, MAPPED_ITEM_BYTES = 5.8, 35.0, 349.0
"""Of the split, which has the catalogue as it was and once more to be mapped."""
PAIR_BYTES = 4.0
"""Of a counted pair that is kept."""
TOKEN_ID_BYTES = 16.0
"""Of an item's id beside its codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a raw log holds, known from an import of it."""

    events: int
    users: int
    items: int
    file_bytes: int | None = None
    """Of its files; another log of that source is taken to be alike. None: packaged."""


KNOWN = {
    "movielens": Known(events=100_004, users=671, items=9_066),
    "complete-journey": Known(events=1_469_293, users=2_469, items=92_348),
    "sequences": Known(
        events=198_502, users=22_363, items=12_101, file_bytes=3_086_629
    ),
}
"""``log.source`` -> its size. Of ``sequences``: Beauty."""
