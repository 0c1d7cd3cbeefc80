"""A page of a Parquet file is verified when it is read, whatever the sums say.

A file is hashed before it is read: what changes between the two, or was wrong when it
was hashed, the checksum of the page alone can tell.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.evaluation.compare import COLUMNS, read_hits
from sgrec_torchrec.experiments.arm_metrics import METRICS, ArmRows, read_arm, write_arm
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.checked_parquet import read_checked
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.item_graph.pair_counts import PairCounts, count_pairs
from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import Origin
from sgrec_torchrec.logs.incoming import Incoming
from sgrec_torchrec.logs.split import load_split, prepare_split
from sgrec_torchrec.reward_table import MissLog

NUM_ROWS = 40
READ_ERRORS = (ValueError, OSError)


class Site(NamedTuple):
    """A file, and what reads it."""

    path: Path
    read: Callable[[], object]


def canonical_in(folder: Path) -> Path:
    rows = np.arange(NUM_ROWS)
    columns = {
        "user_id": [f"u{row // 8}" for row in rows],
        "item_id": [f"i{row % 7}" for row in rows],
        "timestamp": rows,
    }
    incoming = Incoming(name="log", source=pa.table(columns))
    write_canonical(folder / "log", incoming, None, Origin(importer="t", note=""))
    return folder / "log"


def split_in(folder: Path) -> Path:
    prepare_split(canonical_in(folder), LogConfig(), folder / "split")
    return folder / "split"


def events(folder: Path) -> Site:
    log = canonical_in(folder)
    path = log / "interactions" / "part-00000.parquet"
    return Site(path, lambda: list(read_canonical(log).interactions()))


def log_items(folder: Path) -> Site:
    log = canonical_in(folder)
    return Site(log / "items.parquet", lambda: read_canonical(log).items())


def split_file(name: str) -> Callable[[Path], Site]:
    def site(folder: Path) -> Site:
        split = split_in(folder)
        return Site(split / name, lambda: load_split(split))

    return site


def older_split_items(folder: Path) -> Site:
    """Of a split without files to be mapped."""
    split = split_in(folder)
    facts = json.loads((split / "manifest.json").read_text())
    for name in facts.pop("mapped"):
        (split / name).unlink()
    write_sealed(split / "manifest.json", facts)
    return Site(split / "items.parquet", lambda: load_split(split))


def pairs(folder: Path) -> Site:
    sequences = load_split(split_in(folder)).sequences
    counts = folder / "pairs"
    count_pairs(sequences, sequences.train_end_U, counts, max_distance=5)
    path = counts / "covisits-00000.parquet"
    return Site(path, lambda: list(PairCounts.load(counts).blocks()))


def hits(folder: Path) -> Site:
    rows = np.arange(NUM_ROWS)
    texts = [f"t{row}" for row in rows]
    table = pa.table([texts, rows, texts, rows], names=[name for name, _ in COLUMNS])
    path = folder / "hits.parquet"
    table = table.cast(pa.schema(COLUMNS))
    pq.write_table(table, path, write_page_checksum=True)
    return Site(path, lambda: read_hits(path))


def arm(folder: Path) -> Site:
    texts = np.array([f"t{row}" for row in range(NUM_ROWS)], dtype=object)
    rows = ArmRows(
        user_id_E=texts,
        row_E=np.arange(NUM_ROWS),
        target_item_id_E=texts,
        values_EM=np.ones((NUM_ROWS, len(METRICS))),
    )
    write_arm(folder / "arm.parquet", rows)
    return Site(folder / "arm.parquet", lambda: read_arm(folder / "arm.parquet"))


def misses(folder: Path) -> Site:
    log = MissLog()
    rows = list(range(NUM_ROWS))
    log.add(rows, rows, [False] * NUM_ROWS)
    log.save(folder / "misses.parquet")
    return Site(
        folder / "misses.parquet", lambda: MissLog().load(folder / "misses.parquet")
    )


def judged(folder: Path) -> Site:
    path = folder / "judged.parquet"
    pq.write_table(pa.table({"a": range(NUM_ROWS)}), path, write_page_checksum=True)
    return Site(path, lambda: read_checked(path, "judge again"))


SITES = {
    "the log's events": events,
    "the log's items": log_items,
    "sequences": split_file("sequences.parquet"),
    "evaluated rows": split_file("test.parquet"),
    "an older split's items": older_split_items,
    "pair counts": pairs,
    "hits": hits,
    "rows of an arm": arm,
    "misses": misses,
    "what the judge wrote": judged,
}


def make_sums_fit(path: Path, old: str) -> None:
    """In the manifest beside it, or in the one of the folder above."""
    for manifest in (*path.parent.glob("*.json"), *path.parent.parent.glob("*.json")):
        if old in (text := manifest.read_text()):
            write_sealed(manifest, json.loads(text.replace(old, sha256_file(path))))


@pytest.mark.parametrize("name", SITES)
def test_a_flipped_bit_in_a_page_is_refused_though_the_sums_fit(
    tmp_path: Path, flip_in_page: Callable[[Path], None], name: str
) -> None:
    path, read = SITES[name](tmp_path)
    read()
    old = sha256_file(path)
    flip_in_page(path)
    make_sums_fit(path, old)
    with pytest.raises(READ_ERRORS, match="CRC"):
        read()
