"""What comes in is wrong, or what goes out has no room: refused in one line."""

import ctypes
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from faults.field import NAME, Field, align_words, remove
from faults.outcome import FaultRow, part, run_trials
from faults.processes import run, start_call

NUM_PAIRS = 200
BAD_REWARDS = (math.nan, math.inf, -math.inf, 1.5, -0.25, 1e30)
NO_ROOM = ("space", "are free")
"""Of what is found full, and of what would not fit."""
PAGE = 4096
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 16384 | (1 << 18)


def input_rows(field: Field, share: float, seed: int) -> Iterator[FaultRow]:
    """The rows of this module, one after another."""
    draw = random.Random(seed)
    count = part(60, share)
    yield run_trials(
        "bad rewards, missing, duplicates", 60, bad_pairs(field, count, draw)
    )
    count = part(20, share)
    yield run_trials("disk full", 20, full_disks(field, count, draw))


def bad_pairs(field: Field, count: int, draw: random.Random) -> Iterator[str | None]:
    """One row of many is wrong: the file and the row are named, nothing is built."""
    for trial in range(count):
        folder = Path(tempfile.mkdtemp(dir=field.root))
        row = draw.randrange(NUM_PAIRS)
        users: list[str | None] = [f"u{n // 20}" for n in range(NUM_PAIRS)]
        items: list[str | None] = [f"i{n % 20}" for n in range(NUM_PAIRS)]
        rewards: list[float | None] = [draw.random() for _ in range(NUM_PAIRS)]
        kind = ("reward", "no reward", "no user", "no item", "twice")[trial % 5]
        if kind == "reward":
            rewards[row] = BAD_REWARDS[(trial // 5) % len(BAD_REWARDS)]
        elif kind == "no reward":
            rewards[row] = None
        elif kind == "no user":
            users[row] = None
        elif kind == "no item":
            items[row] = None
        else:
            other = (row + draw.randrange(1, NUM_PAIRS)) % NUM_PAIRS
            users[row], items[row] = users[other], items[other]
        path = folder / "pairs.parquet"
        columns = {"user_id": users, "item_id": items, "reward": rewards}
        pq.write_table(pa.table(columns), path)
        ended = run("table", "build", path, "--out", folder / "table")
        left = sorted(one.name for one in folder.iterdir() if one != path)
        if ended.fault:
            yield f"{kind}: {ended.fault}"
        elif ended.code != 2:
            yield f"{kind}, row {row}: taken (code {ended.code})"
        elif str(row) not in ended.last_line or path.name not in ended.last_line:
            yield f"{kind}, row {row}: not named: {ended.last_line}"
        else:
            yield f"{kind}: left {left}" if left else None
        remove(folder)


def full_disks(
    field: Field, count: int, draw: random.Random, only: Sequence[str] = ()
) -> Iterator[str | None]:
    """A file system of its own, too small by a part of what the command writes.

    Args:
        only: names of commands; none stands for all.
    """
    commands = {
        "import": (
            ["import", "table", "--path", str(field.root / "log.csv"), "--out", "log"],
            field.log,
        ),
        "train": (field.train(Path("runs")), field.runs()),
        "export": (
            ["export", str(field.runs() / NAME), "--out", "package"],
            field.package,
        ),
        "table": (
            ["table", "build", str(field.root / "pairs.parquet"), "--out", "table"],
            field.table,
        ),
        "post-train": (
            [*field.train(Path("runs")), *align_words()],
            field.root / "aligned",
        ),
    }
    names = list(only or commands)
    for trial in range(count):
        name = names[trial % len(names)]
        words, whole = commands[name]
        needed, there = _bytes_on_disk(whole), 0
        beginning = str(field.runs()) if name == "post-train" else ""
        if beginning:
            there = _bytes_on_disk(field.runs())
        room = there + int(draw.uniform(0.05, 0.95) * (needed - there))
        folder = Path(tempfile.mkdtemp(dir=field.root))
        ended = start_call(_on_small_disk, words, str(folder), room, beginning).wait()
        remove(folder)
        what = f"{name}, {room:,} of {needed:,} bytes"
        if ended.fault:
            yield f"{what}: {ended.fault}"
        elif "cannot mount" in ended.said:
            yield f"{what}: not tried: {ended.last_line}"
        elif ended.code != 2 or not any(word in ended.said for word in NO_ROOM):
            yield f"{what}: code {ended.code}: {ended.last_line}"
        elif "left: " in ended.said:
            yield f"{what}: {ended.last_line}"
        else:
            yield None


def _bytes_on_disk(folder: Path) -> int:
    """In whole pages, as tmpfs counts: none for folders, links and empty files."""
    files = [path for path in folder.rglob("*") if not path.is_symlink()]
    sizes = [path.stat().st_size for path in files if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def _on_small_disk(
    words: Sequence[str], folder: str, size: int, beginning: str
) -> None:
    """Mounts are this process's alone, and gone with it."""
    import shutil
    import sys

    from sgrec_torchrec import cli

    libc = ctypes.CDLL(None, use_errno=True)
    pages = str(max(1, size // PAGE))
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(None, b"/", None, MS_REC_PRIVATE, None)
        or libc.mount(
            b"none", folder.encode(), b"tmpfs", 0, f"nr_blocks={pages}".encode()
        )
    ):
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}; needs root")
    os.chdir(folder)
    if beginning:
        shutil.copytree(beginning, "runs", symlinks=True)
    sys.argv = ["sgrec", *words]
    try:
        cli.main()
    finally:
        left = sorted(str(one) for one in Path().rglob("*.tmp"))
        if left:
            print(f"left: {left}", file=sys.stderr)
