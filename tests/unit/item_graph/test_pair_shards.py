"""A log that is counted in shards has the counts of the whole, to the last bit."""

import numpy as np
import pytest

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.distributed.executor import InProcess
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.hashing import fold_of
from sgrec_torchrec.item_graph import pair_shards
from sgrec_torchrec.item_graph.pair_counts import PairCounts, count_pairs
from sgrec_torchrec.item_graph.pair_shards import Period, count_shards
from sgrec_torchrec.logs import split_store
from sgrec_torchrec.logs.split import prepare_split

PERIOD = Period(fit_on="train", max_distance=5, num_folds=3, seed=4)
MAX_PAIRS = 300


@pytest.fixture
def prepared(planted_log, tmp_path, monkeypatch):
    """Row groups of some 60 events: a split of many shards."""
    monkeypatch.setattr(split_store, "EVENTS_PER_GROUP", 60)
    folder = tmp_path / "split"
    split = prepare_split(planted_log(40), LogConfig(seed=0), folder)
    assert split_store.num_shards(folder) > 5
    return split.sequences, folder


def sums(folder):
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def whole(sequences, folder):
    return count_pairs(
        sequences,
        sequences.train_end_U,
        folder,
        max_distance=PERIOD.max_distance,
        fold_U=fold_of(PERIOD.seed, np.arange(sequences.num_users), PERIOD.num_folds),
        num_folds=PERIOD.num_folds,
        max_pairs=MAX_PAIRS,
    )


def in_shards(prepared, folder, executor, parts):
    parts.mkdir(exist_ok=True)
    sequences, split_dir = prepared
    count_shards(
        sequences,
        split_dir,
        folder,
        PERIOD,
        executor,
        parts=parts,
        max_pairs=MAX_PAIRS,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_and_processes_change_no_bit(prepared, tmp_path, workers):
    counts = whole(prepared[0], tmp_path / "whole")
    assert len(counts.ranges) > 2
    in_shards(prepared, tmp_path / "cut", InProcess(workers), tmp_path / "parts")
    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")
    assert PairCounts.load(tmp_path / "cut").ranges == counts.ranges


def test_a_call_that_was_ended_goes_on_from_what_is_done(
    prepared, tmp_path, monkeypatch
):
    counted = []
    real = pair_shards.read_shard

    def ended_at_the_fourth(split_dir, number):
        counted.append(number)
        if len(counted) == 4:
            raise KeyboardInterrupt
        return real(split_dir, number)

    monkeypatch.setattr(pair_shards, "read_shard", ended_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        in_shards(prepared, tmp_path / "cut", InProcess(), tmp_path / "parts")
    assert not (tmp_path / "cut").exists()
    in_shards(prepared, tmp_path / "cut", InProcess(), tmp_path / "parts")
    assert sorted(set(counted)) == list(range(split_store.num_shards(prepared[1])))
    assert len(counted) == len(set(counted)) + 1
    whole(prepared[0], tmp_path / "whole")
    assert sums(tmp_path / "cut") == sums(tmp_path / "whole")


def test_another_log_is_counted_anew(prepared, tmp_path, monkeypatch):
    in_shards(prepared, tmp_path / "first", InProcess(), tmp_path / "parts")
    manifest = prepared[1] / MANIFEST
    content = split_store.read_sealed(
        manifest, {}, format_version=split_store.FORMAT_VERSION, mend=""
    )
    split_store.write_sealed(manifest, {**content, "seed": 9})
    counted = []
    real = pair_shards.read_shard
    monkeypatch.setattr(
        pair_shards,
        "read_shard",
        lambda place, number: counted.append(number) or real(place, number),
    )
    in_shards(prepared, tmp_path / "second", InProcess(), tmp_path / "parts")
    assert len(counted) == split_store.num_shards(prepared[1])


@pytest.mark.parametrize("name", ["words", "counts"])
def test_a_flipped_bit_between_the_tasks_is_refused(
    prepared, tmp_path, monkeypatch, name
):
    real = pair_shards.join_range

    def flipped(task, folder):
        path = task.inputs[1].parent / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        monkeypatch.undo()
        return real(task, folder)

    monkeypatch.setattr(pair_shards, "join_range", flipped)
    with pytest.raises(ValueError, match=r"shard-00001 is damaged \(sha256 of a range"):
        in_shards(prepared, tmp_path / "cut", InProcess(), tmp_path / "parts")
