"""Parquet -> KeyedJaggedTensor batches: the TrainStream against a usual DataLoader.

Both sides open ``sequences.parquet``, read every user's newest events and yield batches
in the same order. Ours goes through Arrow offsets and values; the peer is what a user
writes: a Dataset over ``to_pylist`` rows, ids per event in Python, a collate function
that pads, and a KeyedJaggedTensor from the padded matrix and its mask. Contents are
compared, tensor by tensor, before anything is timed. No user has more events than a
history holds, so both sides use all that they read.

Usage: python benchmarks/bench_loader.py [--users 20000] [--json PATH]
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from reporting import Row, relative_spread, report, time_interleaved
from torch.utils.data import DataLoader, Dataset
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.logs.features import EventColumns, history_features
from sgrec_torchrec.logs.split_store import read_sequences, write_sequences
from sgrec_torchrec.schema import ItemTokens, Sequences, feature_names

NUM_ITEMS = 100_000
NUM_CODES = 256
NUM_LEVELS = 3
MAX_HISTORY = 200
BATCH_SIZE = 256
CONFIG = GeneratorConfig()


def make_log(num_users: int, seed: int) -> Sequences:
    """Users of Zipf lengths (3 to MAX_HISTORY), uniform items, seconds as clock."""
    generator = np.random.default_rng(seed)
    lengths_U = np.clip(generator.zipf(1.5, num_users) + 2, 3, MAX_HISTORY)
    num_rows = int(lengths_U.sum())
    gaps_R = generator.integers(0, 1 << 20, num_rows)
    return Sequences(
        offsets_U1=np.append(0, np.cumsum(lengths_U)),
        items_R=generator.integers(0, NUM_ITEMS, num_rows, dtype=np.int32),
        timestamps_R=np.cumsum(gaps_R),
        events_R=generator.integers(0, 3, num_rows).astype(np.int16),
        values_R=generator.exponential(20.0, num_rows).astype(np.float32),
        train_end_U=lengths_U.astype(np.int32),
        valid_end_U=lengths_U.astype(np.int32),
        num_items=NUM_ITEMS,
        num_event_types=3,
        has_clock=True,
        has_value=True,
    )


def our_batches(path: Path, tokens: ItemTokens) -> Iterator[KeyedJaggedTensor]:
    sequences, _ = read_sequences(
        path, num_items=NUM_ITEMS, num_event_types=3, has_clock=True, has_value=True
    )
    events = EventColumns.of(sequences)
    end_U = sequences.offsets_U1[1:]
    length_U = np.minimum(np.diff(sequences.offsets_U1), MAX_HISTORY)
    for first in range(0, sequences.num_users, BATCH_SIZE):
        batch = slice(first, first + BATCH_SIZE)
        first_row_B = end_U[batch] - length_U[batch]
        yield history_features(events, first_row_B, length_U[batch], tokens, CONFIG)


class ListDataset(Dataset[dict[str, Any]]):
    """Rows of the Parquet file as Python dictionaries."""

    def __init__(self, path: Path) -> None:
        self.rows = pq.read_table(path).to_pylist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: list[dict[str, Any]], codes: list[list[int]]) -> KeyedJaggedTensor:
    keys = feature_names(NUM_LEVELS)
    columns = [peer_columns(row, codes) for row in rows]
    lengths = torch.tensor([len(column[0]) for column in columns], dtype=torch.int32)
    longest = int(lengths.max())
    padded = torch.tensor(
        [
            [feature + [0] * (longest - len(feature)) for feature in column]
            for column in columns
        ]
    )
    mask = torch.arange(longest) < lengths[:, None]
    values = torch.cat([padded[:, index][mask] for index in range(len(keys))])
    return KeyedJaggedTensor(
        keys=keys, values=values, lengths=lengths.repeat(len(keys)), stride=len(rows)
    )


def peer_columns(row: dict[str, Any], codes: list[list[int]]) -> list[list[int]]:
    """One user's ids per key, in plain Python."""
    items = row["items"][-MAX_HISTORY:]
    times = row["timestamps"][-MAX_HISTORY:]
    values = row["values"][-MAX_HISTORY:]
    gaps = [0] + [
        min(1 + int(math.log2(1 + after - before)), CONFIG.num_gap_buckets - 1)
        for before, after in pairwise(times)
    ]
    octaves = [
        1 if value < 1 else min(2 + int(math.log2(value)), CONFIG.num_value_buckets - 1)
        for value in values
    ]
    return [
        [0] + [item + 1 for item in items],
        *(
            [0] + [level * NUM_CODES + codes[item][level] + 1 for item in items]
            for level in range(NUM_LEVELS)
        ),
        [0, *gaps],
        [0] + [event + 1 for event in row["events"][-MAX_HISTORY:]],
        [0, *octaves],
    ]


def peer_batches(path: Path, codes: list[list[int]]) -> Iterator[KeyedJaggedTensor]:
    yield from DataLoader(
        ListDataset(path),
        batch_size=BATCH_SIZE,
        collate_fn=partial(collate, codes=codes),
    )


def check_equal(path: Path, tokens: ItemTokens, codes: list[list[int]]) -> int:
    """Compare both sides' batches; returns how many there are."""
    num_batches = 0
    pairs = zip(our_batches(path, tokens), peer_batches(path, codes), strict=True)
    for ours, peer in pairs:
        if ours.keys() != peer.keys() or not torch.equal(ours.values(), peer.values()):
            raise AssertionError(f"batch {num_batches}: values differ")
        if not torch.equal(ours.lengths(), peer.lengths()):
            raise AssertionError(f"batch {num_batches}: lengths differ")
        num_batches += 1
    return num_batches


def consume(batches: Iterator[KeyedJaggedTensor]) -> int:
    return sum(batch.stride() for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(1)
    codes_NL = generator.integers(0, NUM_CODES, (NUM_ITEMS, NUM_LEVELS), dtype=np.int32)
    tokens = ItemTokens(codes_NL=codes_NL, num_codes=NUM_CODES)
    codes = codes_NL.tolist()
    sequences = make_log(args.users, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sequences.parquet"
        write_sequences(path, sequences, [str(user) for user in range(args.users)])
        num_batches = check_equal(path, tokens, codes)
        print(f"{num_batches} batches equal in all values; timing")
        ours_s, peer_s = time_interleaved(
            lambda: consume(our_batches(path, tokens)),
            lambda: consume(peer_batches(path, codes)),
            args.repetitions,
        )
    shown = np.minimum(np.diff(sequences.offsets_U1), MAX_HISTORY).sum()
    ratios = [peer / ours for ours, peer in zip(ours_s, peer_s, strict=True)]
    rows = [
        Row(
            name=f"parquet to KeyedJaggedTensor, {what}",
            unit=f"{what}/s",
            ours=count / median(ours_s),
            peer=count / median(peer_s),
            peer_name="DataLoader + pyarrow to_pylist + pad",
            ratio=median(ratios),
            spread=relative_spread(ratios),
        )
        for what, count in (("events", float(shown)), ("users", float(args.users)))
    ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
