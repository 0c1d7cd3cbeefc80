"""What a process keeps of a prepared split, by kind of memory.

    python benchmarks/bench_split_memory.py [--users 1e6 --items 1e6 --events 3]

A log of users with some events each, items with titles of 40 characters. A process of
its own opens the split and says what came to it: anonymous memory, which every rank of
a host has anew, and mapped pages of files, which they share.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.logs.canonical import file_facts, parquet_writer, write_parts
from sgrec_torchrec.logs.split import load_split, prepare_split

MIB = 1 << 10
"""KiB a MiB, as the kernel counts."""


def main() -> None:
    """Write a split, open it in another process, print what that kept."""
    args = parse_arguments()
    if args.load:
        print_kept(args.load)
        return
    with tempfile.TemporaryDirectory() as folder:
        canonical = Path(folder) / "canonical"
        write_log(canonical, int(args.users), int(args.items), args.events)
        split_dir = Path(folder) / "split"
        prepare_split(canonical, LogConfig(), split_dir)
        command = [sys.executable, __file__, "--load", str(split_dir)]
        subprocess.run(command, check=True)


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--users", type=float, default=1e6)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--events", type=int, default=3, help="of a user")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_log(folder: Path, num_users: int, num_items: int, num_events: int) -> None:
    """A canonical log: user u has events at 1, ..., num_events."""
    folder.mkdir()
    user_R = np.repeat(np.arange(num_users), num_events)
    events = pa.table(
        {
            "user_id": pa.array(np.char.mod("user-%09d", user_R)),
            "item_id": np.random.default_rng(0).integers(0, num_items, len(user_R)),
            "timestamp": np.tile(np.arange(1, num_events + 1), num_users),
        }
    )
    write_parts(folder / "interactions", events.to_batches())
    items = pa.table(
        {
            "item_id": np.arange(num_items),
            "title": [
                f"{item:09d} of forty characters each, a title"
                for item in range(num_items)
            ],
        }
    )
    with parquet_writer(folder / "items.parquet", items.schema) as writer:
        writer.write_table(items)
    facts = {"format_version": 1, "has_clock": True, "files": file_facts(folder)}
    write_json(folder / "manifest.json", facts)


def print_kept(split_dir: Path) -> None:
    """Open the split; print MiB that this process has more, and seconds."""
    before, start = memory_kib(), time.perf_counter()
    split = load_split(split_dir)
    seconds = time.perf_counter() - start
    gc.collect()
    pa.default_memory_pool().release_unused()
    after = memory_kib()
    events = len(split.sequences.items_R)
    print(
        f"{len(split.user_ids):,} users, {len(split.catalogue):,} items, "
        f"{events:,} events ({18 * events / 2**20:.0f} MiB): opened in {seconds:.1f} s"
    )
    for name, kib in after.items():
        print(f"{name}: {(kib - before[name]) / MIB:.0f} MiB")


def memory_kib() -> dict[str, int]:
    """This process's anonymous memory, and all that is resident."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":") for line in lines if line.endswith("kB"))
    return {name: int(sizes[name].split()[0]) for name in ("Anonymous", "Rss")}


if __name__ == "__main__":
    main()
