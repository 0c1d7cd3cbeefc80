"""Readers beside a writer see whole tables; of two writers one is refused."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.reward_table import (
    RewardTable,
    append_segment,
    build_reward_table,
    compact,
)
from sgrec_torchrec.reward_table import (
    table as table_module,
)
from sgrec_torchrec.reward_table.manifest import read_manifest, writing

NUM_USERS, NUM_ITEMS = 40, 25
ROUNDS = 12


def write_version(path: Path, version: int) -> None:
    """All pairs, with one reward for the whole version."""
    columns = {
        "user_id": np.repeat(np.arange(NUM_USERS), NUM_ITEMS),
        "item_id": np.tile(np.arange(NUM_ITEMS), NUM_USERS),
        "reward": np.full(NUM_USERS * NUM_ITEMS, version / ROUNDS),
    }
    pq.write_table(pa.table(columns), path)


def _read_on(folder: Path, stop: Any, pipe: Any) -> None:
    """Open and ask until told to stop; sends how often, and what was wrong."""
    users = np.repeat(np.arange(NUM_USERS), NUM_ITEMS)
    items = np.tile(np.arange(NUM_ITEMS), NUM_USERS)
    seen: list[float] = []
    faults: list[str] = []
    while not stop.is_set():
        try:
            rewards, found = RewardTable.open(folder).lookup(users, items)
        except (OSError, ValueError) as error:
            faults.append(repr(error))
            continue
        if not found.all() or np.ptp(rewards) > 0:
            faults.append(f"a mixture: {np.unique(rewards)}")
        seen.append(float(rewards[0]))
    if seen != sorted(seen):
        faults.append("an older state after a newer one")
    pipe.send((len(set(seen)), faults))


@pytest.mark.long
def test_readers_see_the_old_or_the_new_state(tmp_path: Path) -> None:
    folder, judged = tmp_path / "table", tmp_path / "judged.parquet"
    write_version(judged, 0)
    build_reward_table(judged, folder)
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    pipes, readers = [], []
    for _ in range(2):
        here, there = context.Pipe()
        readers.append(
            context.Process(target=_read_on, args=(folder, stop, there), daemon=True)
        )
        pipes.append(here)
        readers[-1].start()
    for version in range(1, ROUNDS + 1):
        write_version(judged, version)
        append_segment(folder, judged)
        if version % 2:
            compact(folder)
        time.sleep(0.02)
    stop.set()
    for here, reader in zip(pipes, readers, strict=True):
        assert here.poll(60)
        num_states, faults = here.recv()
        assert faults == []
        assert num_states > 1
        reader.join(60)


def test_opening_tries_again_after_a_compaction(
    write_pairs, tmp_path: Path, monkeypatch
) -> None:
    """The segments go between the manifest and the maps."""
    folder = tmp_path / "table"
    build_reward_table(write_pairs([(1, 1, 0.25)]), folder)
    append_segment(folder, write_pairs([(1, 1, 0.75)]))
    read = table_module.read_manifest
    monkeypatch.setattr(
        table_module, "read_manifest", lambda path: (read(path), compact(path))[0]
    )
    opened = RewardTable.open(folder)
    assert len(opened.manifest.segments) == 1
    assert opened.lookup([1], [1])[0][0] == pytest.approx(0.75, abs=1e-5)


def test_an_open_table_outlives_its_files(write_pairs, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    build_reward_table(write_pairs([(1, 1, 0.25)]), folder)
    opened = RewardTable.open(folder)
    build_reward_table(write_pairs([(1, 1, 0.75)]), folder)
    assert opened.lookup([1], [1])[0][0] == pytest.approx(0.25, abs=1e-5)
    assert RewardTable.open(folder).lookup([1], [1])[0][0] > 0.7
    assert len(list((folder / "segments").iterdir())) == 1


def test_a_second_writer_is_refused(write_pairs, tmp_path: Path) -> None:
    folder, file = tmp_path / "table", write_pairs([(1, 1, 0.5)])
    build_reward_table(file, folder)
    before = read_manifest(folder)
    with writing(folder, must_exist=True):
        for attempt in (
            lambda: build_reward_table(file, folder),
            lambda: append_segment(folder, file),
            lambda: compact(folder),
        ):
            with pytest.raises(BlockingIOError, match="is being written by another pr"):
                attempt()
    assert read_manifest(folder) == before
    append_segment(folder, file)


def test_a_second_first_build_is_refused(write_pairs, tmp_path: Path) -> None:
    folder, file = tmp_path / "table", write_pairs([(1, 1, 0.5)])
    with (
        writing(folder, must_exist=False),
        pytest.raises(BlockingIOError, match="is being written by another process"),
    ):
        build_reward_table(file, folder)
    assert not folder.exists()
