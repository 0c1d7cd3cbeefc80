"""The reward table against LMDB, pandas and DuckDB: lookups, build, open, size.

All hold the same judged pairs: a hundred random items for each user. A lookup asks for
512 users x 16 items as a training step does, with fresh keys each repetition, on a
table far larger than the caches; every side is warm in the page cache and mapped. All
answers are compared with the truth before anything is timed. The peers:

    LMDB      16-byte big-endian keys, float32 values, one ``getmulti`` a batch
    pandas    Series over a (user, item) MultiIndex, ``reindex``
    DuckDB    table of the pairs, left join of the keys

The LMDB build reads the same Parquet, sorts in memory (numpy) and appends in order
without syncing; ours reads, sorts, checksums and syncs. The full size is built in turns
(``--builds``), each time in a process of its own; so is a small table, in one process.
Processor time stands beside the time on the clock, which other jobs stretch. Pairs come
scrambled, or with ``--order users`` one user after the other, as the judge writes them.

Usage: python benchmarks/bench_reward_table.py [--pairs 100000000] [--folder DIR]
    [--order users] [--builds 3] [--skip pandas] [--json PATH]
"""

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import duckdb
import lmdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from reporting import Row, relative_spread, report

from sgrec_torchrec.reward_table import RewardTable, build_reward_table

PER_USER = 100
NUM_ITEMS = 100_000
SHARD_ROWS = 5_000_000
USERS_ASKED, ITEMS_ASKED = 512, 16
REPETITIONS = 15
SMALL_PAIRS = 2_000_000


def mixed(numbers: np.ndarray) -> np.ndarray:
    """A hash of whole numbers, uint64."""
    h = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (h ^ (h >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(8)


def pair_of(user: np.ndarray, slot: np.ndarray) -> tuple[np.ndarray, ...]:
    """(user id, item id, reward) of the slot-th pair of a user; items are distinct."""
    h = mixed(user)
    # steps that end in 1 share no factor with the number of items
    step = (h >> np.uint64(20)) % np.uint64(NUM_ITEMS // 10) * np.uint64(
        10
    ) + np.uint64(1)
    item = (h + slot.astype(np.uint64) * step) % np.uint64(NUM_ITEMS)
    score = mixed(item + h % np.uint64(1 << 40)) % np.uint64(1 << 20)
    reward = score.astype(np.float32) / np.float32(1 << 20)
    return user.astype(np.int64) * 7919 + 13, item.astype(np.int64), reward


STRIDES = {"scrambled": 6_180_339_887, "users": 1}
"""From a pair to the next: no factor in common with any power of ten, so that all are
visited, and a share of the pairs near the golden ratio for some of these powers."""


def write_shards(folder: Path, num_pairs: int, order: str) -> list[Path]:
    """All pairs in this order, as Parquet files of SHARD_ROWS."""
    folder.mkdir(parents=True)
    stride = np.uint64(STRIDES[order] % num_pairs)
    files = []
    for start in range(0, num_pairs, SHARD_ROWS):
        nth = np.arange(start, min(start + SHARD_ROWS, num_pairs), dtype=np.uint64)
        place = nth * stride % np.uint64(num_pairs)
        user, slot = np.divmod(place, np.uint64(PER_USER))
        names = ("user_id", "item_id", "reward")
        columns = dict(zip(names, pair_of(user, slot), strict=True))
        files.append(folder / f"{start // SHARD_ROWS:05d}.parquet")
        pq.write_table(pa.table(columns), files[-1])
    return files


def fresh_keys(num_pairs: int, seed: int) -> tuple[np.ndarray, ...]:
    """A batch of (user ids, item ids, true rewards), 16 judged items of 512 users."""
    noise = np.random.default_rng(seed)
    user = noise.integers(0, num_pairs // PER_USER, USERS_ASKED)
    slot = noise.random((USERS_ASKED, PER_USER)).argsort(axis=1)[:, :ITEMS_ASKED]
    return pair_of(np.repeat(user, ITEMS_ASKED), slot.reshape(-1))


def packed(users: np.ndarray, items: np.ndarray) -> list[bytes]:
    """LMDB keys: sorted as bytes they are sorted as pairs."""
    raw = np.stack([users, items], axis=1).astype(">i8").tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def build_ours(files: list[Path], out: Path) -> None:
    build_reward_table(files, out)


def build_lmdb(files: list[Path], out: Path) -> None:
    table = pa.concat_tables([pq.read_table(file) for file in files])
    users, items, rewards = (table[name].to_numpy() for name in table.column_names)
    del table
    order = np.argsort(users * NUM_ITEMS + items)
    users, items, rewards = users[order], items[order], rewards[order]
    del order
    room = 64 * len(users) + (1 << 24)
    with lmdb.open(str(out), map_size=room, sync=False) as env:
        for start in range(0, len(users), 1 << 20):
            part = slice(start, start + (1 << 20))
            raw = rewards[part].tobytes()
            values = [raw[at : at + 4] for at in range(0, len(raw), 4)]
            pairs = zip(packed(users[part], items[part]), values, strict=True)
            with env.begin(write=True) as transaction:
                transaction.cursor().putmulti(list(pairs), append=True)


def _measured(build: Callable[..., None], files: list[Path], out: Path, pipe) -> None:
    start, start_cpu = time.perf_counter(), time.process_time()
    build(files, out)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send((seconds, cpu, peak))


def build_apart(build: Callable[..., None], files: list[Path], out: Path):
    """Seconds, those of the processor, peak GiB of memory and on disk of a build.

    In a new process, in place of what stood in ``out``.
    """
    shutil.rmtree(out, ignore_errors=True)
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    worker = spawn.Process(target=_measured, args=(build, files, out, there))
    worker.start()
    peak_disk = 0
    while worker.is_alive():
        peak_disk = max(peak_disk, folder_bytes(out))
        worker.join(0.2)
    assert worker.exitcode == 0
    return *here.recv(), peak_disk / 2**30


def folder_bytes(folder: Path) -> int:
    """Bytes on disk below a folder whose files come and go."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


class Peers:
    """The same pairs in each peer, ready to be asked."""

    def __init__(self, folder: Path, files: list[Path], skip: list[str]) -> None:
        self.ask: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {}
        if "lmdb" not in skip:
            self._env = lmdb.open(str(folder / "lmdb"), readonly=True, lock=False)
            self.ask["LMDB"] = self._ask_lmdb
        if "duckdb" not in skip:
            self._duck = duckdb.connect(str(folder / "pairs.duckdb"))
            self._duck.execute("SET threads = 1")
            names = [str(file) for file in files]
            self._duck.execute(
                "CREATE TABLE pairs AS SELECT * FROM read_parquet($1)", [names]
            )
            self.ask["DuckDB join"] = self._ask_duckdb
        if "pandas" not in skip:
            frame = pq.read_table(files).to_pandas()
            self._series = frame.set_index(["user_id", "item_id"])["reward"]
            self.ask["pandas reindex"] = self._ask_pandas

    def warm_up(self, keys: tuple[np.ndarray, ...]) -> None:
        """Let pandas build its index, which pushes files from memory; then map all."""
        for ask in self.ask.values():
            ask(*keys)
        if "LMDB" in self.ask:
            with self._env.begin() as transaction:
                for _ in transaction.cursor().iternext(keys=False, values=False):
                    pass

    def _ask_lmdb(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        with self._env.begin(buffers=False) as transaction:
            found = transaction.cursor().getmulti(packed(users, items))
        return np.frombuffer(b"".join(value for _, value in found), np.float32)

    def _ask_pandas(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = pd.MultiIndex.from_arrays([users, items])
        return self._series.reindex(keys).to_numpy()

    def _ask_duckdb(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = pa.table({"n": np.arange(len(users)), "u": users, "i": items})
        self._duck.register("keys", keys)
        answer = self._duck.execute(
            "SELECT reward FROM keys LEFT JOIN pairs ON u = user_id AND i = item_id "
            "ORDER BY n"
        )
        return answer.fetchnumpy()["reward"]


def time_lookups(table: RewardTable, peers: Peers, num_pairs: int) -> list[Row]:
    """Our row and one for each peer, asked in turns, all with keys of their own."""
    sides = {"ours": lambda users, items: table.lookup(users, items)[0], **peers.ask}
    taken_ns: dict[str, list[float]] = {name: [] for name in sides}
    seed = 0
    for repetition in range(REPETITIONS + 1):
        for name, ask in sides.items():
            seed += 1
            users, items, truth = fresh_keys(num_pairs, seed)
            start = time.perf_counter()
            answer = ask(users, items)
            elapsed_ns = 1e9 * (time.perf_counter() - start)
            np.testing.assert_allclose(answer, truth, atol=1 / 131070 + 1e-7)
            if repetition:
                taken_ns[name].append(elapsed_ns / len(users))
    ours = taken_ns.pop("ours")
    name = f"lookup, {USERS_ASKED} x {ITEMS_ASKED} of {num_pairs:.0e} pairs"
    if not taken_ns:
        return [against(name, "ns a key", median(ours))]
    return [
        Row(
            name=name,
            unit="ns a key",
            ours=median(ours),
            peer=median(peer),
            peer_name=rival,
            ratio=median(peer) / median(ours),
            spread=relative_spread(ours),
        )
        for rival, peer in taken_ns.items()
    ]


def time_small_builds(folder: Path) -> Row:
    """Both builds of a small table, in turns."""
    files = write_shards(folder / "small", SMALL_PAIRS, "scrambled")
    taken: dict[Callable[..., None], list[float]] = {build_ours: [], build_lmdb: []}
    for repetition in range(8):
        for build, seconds in taken.items():
            out = folder / "small-built"
            start = time.perf_counter()
            build(files, out)
            if repetition:
                seconds.append(time.perf_counter() - start)
            shutil.rmtree(out)
    ours, peer = taken[build_ours], taken[build_lmdb]
    return Row(
        name=f"build of {SMALL_PAIRS:.0e} pairs",
        unit="ns a pair",
        ours=1e9 * median(ours) / SMALL_PAIRS,
        peer=1e9 * median(peer) / SMALL_PAIRS,
        peer_name="LMDB sorted append",
        ratio=median(peer) / median(ours),
        spread=relative_spread(ours),
    )


def against(name: str, unit: str, ours: float, peer: float | None = None) -> Row:
    """A row of one figure a side, less being better."""
    return Row(
        name=name,
        unit=unit,
        ours=ours,
        peer=peer,
        peer_name="LMDB" if peer is not None else "-",
        ratio=None if peer is None else peer / ours,
        spread=0.0,
    )


def full_builds(
    folder: Path, files: list[Path], num_pairs: int, skip: list[str], repetitions: int
) -> list[Row]:
    """Time, memory and disk of the full build, ours and LMDB's, in turns."""
    sides = {"table": build_ours, "lmdb": build_lmdb}
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, build in sides.items():
            if name not in skip:
                taken[name].append(build_apart(build, files, folder / name))
    ours = [median(figures) for figures in zip(*taken["table"], strict=True)]
    peer = [median(figures) for figures in zip(*taken["lmdb"], strict=True)]
    size, per_pair = f"build of {num_pairs:.0e} pairs", 1e9 / num_pairs
    what = (
        (size, "ns a pair", per_pair),
        (f"{size}: processor", "ns a pair", per_pair),
        (f"{size}: peak memory", "GiB", 1.0),
        (f"{size}: peak disk", "GiB", 1.0),
    )
    return [
        against(name, unit, one * factor, other if other is None else other * factor)
        for (name, unit, factor), one, other in zip(
            what, ours, peer or [None] * len(what), strict=True
        )
    ]


def open_and_size(folder: Path, num_pairs: int, skip: list[str]) -> list[Row]:
    """Time to open, and bytes a pair with the id maps apart."""
    taken = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        RewardTable.open(folder / "table")
        taken.append(1e3 * (time.perf_counter() - start))
    opened = against("open", "ms", median(taken))
    (segment,) = RewardTable.open(folder / "table").info()["segments"]
    sizes = segment["num_bytes"]
    of_pairs = sum(sizes[name] for name in ("rows", "offsets"))
    of_maps = sum(sizes.values()) - of_pairs
    lmdb_bytes = None if "lmdb" in skip else folder_bytes(folder / "lmdb") / num_pairs
    return [
        opened,
        against("bytes a pair", "B", of_pairs / num_pairs, lmdb_bytes),
        against("id maps, bytes a pair", "B", of_maps / num_pairs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="for files; default: temporary")
    parser.add_argument(
        "--skip", nargs="*", default=[], choices=["lmdb", "pandas", "duckdb"]
    )
    parser.add_argument("--order", choices=list(STRIDES), default="scrambled")
    parser.add_argument("--builds", type=int, default=1, help="of the full size, each")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        files = write_shards(folder / "judged", args.pairs, args.order)
        rows = full_builds(folder, files, args.pairs, args.skip, args.builds)
        rows += open_and_size(folder, args.pairs, args.skip)
        peers = Peers(folder, files, args.skip)
        peers.warm_up(fresh_keys(args.pairs, 0)[:2])
        table = RewardTable.open(folder / "table")
        table.prefault()
        # mapped is not yet warm where the machine is a guest that gave memory back
        table.verify()
        rows = time_lookups(table, peers, args.pairs) + rows
        if "lmdb" not in args.skip:
            rows.append(time_small_builds(folder))
    report(rows, args.json)


if __name__ == "__main__":
    main()
