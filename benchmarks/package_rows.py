"""The package's part of ``bench_serving``: time to load, and memory of int8 tables."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from peers.serving_package import made_parts
from reporting import Row, relative_spread

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.serving.package import write_package

CONFIG = GeneratorConfig(
    dim=64, num_layers=2, num_heads=2, decoder_width=128, dropout=0.0
)
SIZES = (100_000, 1_000_000)
TARGET_S = 5.0
NUM_LOADS = 5
LOAD = """
import sys
from pathlib import Path
from sgrec_torchrec.serving import Recommender
recommender = Recommender.load(sys.argv[1])
assert len(recommender.recommend([["item1"]], 3)[0].item_ids) == 3
text = Path("/proc/self/status").read_text(encoding="ascii")
print(int(text.split("VmRSS:")[1].split()[0]) / 1024)
"""
"""The first answer included: whatever is put off would show there."""


def package_rows() -> Iterator[Row]:
    """Rows of both sizes; a load is a process of its own, from its start to its end."""
    for num_items in SIZES:
        parts = made_parts(num_items, CONFIG)
        table_bytes, resident_mib = [], []
        for is_int8 in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder) / "package"
                manifest = write_package(parts, package, is_int8=is_int8)
                loads = [_load(package) for _ in range(1 + NUM_LOADS)][1:]
            table_bytes.append(manifest["table_bytes"] / 1e6)
            resident_mib.append(median(mib for _, mib in loads))
            yield _load_row(num_items, is_int8, [seconds for seconds, _ in loads])
        for what, unit, (ours, peer) in (
            ("tables", "MB", table_bytes),
            ("a process that has loaded it", "MiB", resident_mib),
        ):
            yield Row(
                name=f"{num_items:,} items, d = {CONFIG.dim}, int8: {what}",
                unit=unit,
                ours=ours,
                peer=peer,
                peer_name="float32",
                ratio=peer / ours,
                spread=0.0,
            )


def _load(package: Path) -> tuple[float, float]:
    """Seconds of a process that loads and answers once, and its memory in MiB."""
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", "")))
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(package)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - start, float(done.stdout)


def _load_row(num_items: int, is_int8: bool, seconds: list[float]) -> Row:
    kind = "int8" if is_int8 else "float32"
    return Row(
        name=f"{num_items:,} items, {kind}: a new process loads it and answers once",
        unit="s",
        ours=median(seconds),
        peer=TARGET_S,
        peer_name="target",
        ratio=TARGET_S / median(seconds),
        spread=relative_spread(seconds),
    )
