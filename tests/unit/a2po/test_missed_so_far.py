"""Misses are counted on from the state that a run goes on from, on any ranks."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.a2po.missed_so_far import MissedSoFar
from sgrec_torchrec.reward_table import MissLog

Make = Callable[..., MissedSoFar]
Counts = dict[tuple[str, str], int]


@pytest.fixture
def missed(tmp_path: Path) -> Make:
    """missed(rank=0, of=1, step=0): of a process that goes on from a step."""

    def make(rank: int = 0, of: int = 1, step: int = 0) -> MissedSoFar:
        log = MissLog()
        made = MissedSoFar(log=log, folder=tmp_path, rank=rank, world_size=of)
        made.go_on(step)
        return made

    return make


def add(one: MissedSoFar, *pairs: str) -> None:
    """Pairs as "ua": user u, item a; none is found."""
    one.log.add([pair[0] for pair in pairs], [pair[1] for pair in pairs], [False] * 2)


def written(folder: Path) -> Counts:
    """Of all ranks together."""
    counts: Counts = {}
    for path in folder.glob("misses-*.parquet"):
        for row in pq.read_table(path).to_pylist():
            key = (row["user_id"], row["item_id"])
            counts[key] = counts.get(key, 0) + row["count"]
    return counts


def state(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / "checkpoints" / f"step-{step:012d}").mkdir(parents=True)


def test_what_was_saved_after_the_state_is_forgotten(
    missed: Make, tmp_path: Path
) -> None:
    one = missed()
    add(one, "ua", "ub")
    one.keep(5)
    state(tmp_path, 5)
    add(one, "ua", "ua")
    one.keep(10)
    again = missed(step=5)
    assert (again.log.num_asked, again.log.num_missing) == (2, 2)
    add(again, "ub", "vb")
    again.write()
    assert written(tmp_path) == {("u", "a"): 1, ("u", "b"): 2, ("v", "b"): 1}
    assert len(missed(step=10).log) == 0


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2), (2, 2)])
def test_other_ranks_go_on_with_the_misses_of_all(
    missed: Make, tmp_path: Path, before: int, after: int
) -> None:
    for rank in range(before):
        one = missed(rank, before)
        add(one, "ua", f"u{rank}")
        one.keep(5)
        one.write()
    expected = {("u", "a"): before} | {("u", str(rank)): 1 for rank in range(before)}
    assert written(tmp_path) == expected
    for rank in range(after):
        one = missed(rank, after, step=5)
        one.keep(10)
        one.write()
    assert written(tmp_path) == expected
    # What was kept for the step is of the ranks that are there now, too.
    assert missed(step=10).log.num_missing == 2 * before


def test_files_of_states_that_are_gone_go(missed: Make, tmp_path: Path) -> None:
    one = missed()
    add(one, "ua", "ub")
    for step in (5, 10, 15):
        one.keep(step)
        state(tmp_path, step)
    (tmp_path / "checkpoints" / "step-000000000005").rmdir()
    one.keep(20)
    names = sorted(path.name for path in (tmp_path / "missed").iterdir())
    assert names == [f"step-{step:012d}-00000.parquet" for step in (10, 15, 20)]


def test_a_run_of_an_older_version_goes_on_without(missed: Make) -> None:
    assert len(missed(step=7).log) == 0


def test_nothing_missed_is_nothing_written(missed: Make, tmp_path: Path) -> None:
    one = missed()
    one.keep(5)
    missed(step=5).write()
    assert not list(tmp_path.glob("misses-*"))


@pytest.mark.parametrize("harm", ["cut", "flip", "columns"])
def test_a_damaged_file_is_named(missed: Make, tmp_path: Path, harm: str) -> None:
    one = missed()
    add(one, "ua", "ub")
    one.keep(5)
    (path,) = (tmp_path / "missed").iterdir()
    data = path.read_bytes()
    if harm == "columns":
        table = pq.read_table(path)
        pq.write_table(table.drop_columns("count"), path)
    elif harm == "cut":
        path.write_bytes(data[:-9])
    else:
        at = data.index(b"u")
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ValueError, match=r"00000\.parquet is damaged .*: delete it; m"):
        missed(step=5)
