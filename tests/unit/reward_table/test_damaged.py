"""Whatever bit of a table flips: refused where it is verified, and never a crash."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.reward_table import (
    RewardTable,
    append_segment,
    build_reward_table,
    compact,
)
from sgrec_torchrec.reward_table.manifest import render

NUM_FLIPS = 200
NUM_PAIRS = 40


@pytest.fixture(params=[int, str], ids=["int", "text"])
def table(request: pytest.FixtureRequest, write_pairs: Any, tmp_path: Path) -> Path:
    """Two segments with all files that there are; one user has a long row."""
    name: Callable[[Any], Any] = request.param
    pairs = [(nth % 9, nth % 17) for nth in range(NUM_PAIRS)]
    pairs += [(10, nth) for nth in range(200)]
    rows = [(name(user), name(item), 0.5) for user, item in sorted(set(pairs))]
    for nth in range(2):
        part = rows[:: 1 + nth]
        columns = {"as_of": nth, "history_hash": 7, "aspect_a": 0.5}
        file = write_pairs(
            part, **{name: [value] * len(part) for name, value in columns.items()}
        )
        if nth:
            append_segment(tmp_path / "table", file)
        else:
            build_reward_table(file, tmp_path / "table")
    return tmp_path / "table"


def ids(path: Path) -> tuple[Any, Any]:
    """Pairs to ask for: those of the table, and some that it lacks."""
    users, items = np.divmod(np.arange(12 * 210), 210)
    if RewardTable.open(path).manifest.columns.user_is_text:
        return users.astype(str).tolist(), items.astype(str).tolist()
    return users, items


@contextmanager
def flipped(table: Path, seed: int) -> Iterator[Path]:
    """A bit of one file flipped; the files take turns."""
    noise = np.random.default_rng(seed)
    files = sorted(table.glob("segments/*/*.bin"))
    path = files[seed % len(files)]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[noise.integers(len(whole))] ^= 1 << noise.integers(8)
    path.write_bytes(damaged)
    yield path
    path.write_bytes(whole)


def in_a_child(work: Callable[[], None]) -> int:
    """The wait status of a process that does the work: a signal ends no test."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ask_everything(path: Path) -> None:
    """Every way to read a table; wrong answers are what sums are for."""
    table = RewardTable.open(path)
    users, items = ids(path)
    table.lookup(users, items, aspects=True)
    table.segment_of(users, items)
    table.as_of(users)


def test_a_flipped_bit_is_refused_where_the_table_is_verified(table: Path) -> None:
    for seed in range(NUM_FLIPS):
        with (
            flipped(table, seed) as path,
            pytest.raises(ValueError, match=rf"{path.name} is damaged \(its SHA-256"),
        ):
            RewardTable.open(table, verify=True)
    RewardTable.open(table, verify=True)


def test_no_flipped_bit_makes_a_lookup_read_elsewhere(
    table: Path, tmp_path: Path
) -> None:
    ask_everything(table)
    last_seed = tmp_path / "seed"

    def ask_damaged() -> None:
        for seed in range(NUM_FLIPS):
            last_seed.write_text(str(seed))
            with flipped(table, seed):
                ask_everything(table)

    assert in_a_child(ask_damaged) == 0, f"by flip {last_seed.read_text()}"


@pytest.mark.parametrize("name", ["user_slots", "offsets", "rows", "item_slots"])
def test_numbers_that_lead_nowhere_are_bounded(table: Path, name: str) -> None:
    for path in table.glob(f"segments/*/{name}.bin"):
        whole = path.read_bytes()
        for word in (b"\xff", b"\x7f", b"\x01"):
            path.write_bytes(word * len(whole))
            assert in_a_child(lambda: ask_everything(table)) == 0, word
        path.write_bytes(whole)


def test_a_copy_on_a_device_refuses_what_leads_nowhere(
    write_pairs: Any, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    rows = [(nth % 9, nth % 7, 0.5) for nth in range(60)]
    build_reward_table(write_pairs(rows, aspect_a=[0.5] * 60), table)
    asked = [torch.from_numpy(column) for column in np.divmod(np.arange(330), 30)]
    for seed in range(NUM_FLIPS):
        with flipped(table, seed):
            opened = RewardTable.open(table)
            with contextlib.suppress(ValueError):
                opened.to("cpu").lookup(*asked, aspects=True)


def test_damage_is_not_sealed_by_a_compaction(table: Path) -> None:
    with (
        flipped(table, 5) as path,
        pytest.raises(ValueError, match=rf"{path.name} is damaged"),
    ):
        compact(table)
    compact(table)


def test_a_manifest_whose_shapes_do_not_fit_is_refused(table: Path) -> None:
    opened = RewardTable.open(table)
    *others, facts = opened.manifest.segments
    short = replace(facts, num_users=facts.num_users - 1)
    manifest = replace(opened.manifest, segments=(*others, short))
    (table / "manifest.json").write_text(render(manifest))
    with pytest.raises(ValueError, match=r"lines, which does not go with the rest"):
        RewardTable.open(table)
