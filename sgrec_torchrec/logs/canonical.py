"""The canonical log: a folder of Parquet files and a manifest.

    interactions/part-00000.parquet ...   user_id, item_id, timestamp [event value
                                          split]
    items.parquet                         item_id, title, description, brand, category
                                          [price embedding sid]
    manifest.json                         counts, source, sha256 of every file

Rows are sorted by (user_id, timestamp, item_id, event). Parquet pages carry checksums.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.run_folder import ITEMS, MANIFEST
from sgrec_torchrec.files.sealed_json import naming, read_sealed

FORMAT_VERSION = 2
MEND = "import the log again"
ROWS_PER_PART = 16_000_000
ROWS_PER_GROUP = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalLog:
    """A canonical log on disk: paths and manifest; rows are read on demand."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def interactions_paths(self) -> list[Path]:
        """The parts of the log, in order; DuckDB and Arrow read them as they are."""
        files = sorted(self.manifest["files"])
        return [self.folder / name for name in files if name.startswith("interactions")]

    @property
    def items_path(self) -> Path:
        """The catalogue."""
        return self.folder / ITEMS

    @property
    def has_clock(self) -> bool:
        """False where timestamps are ordinals, not seconds."""
        return bool(self.manifest["has_clock"])

    def interactions(
        self, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Batches of the log in order, page checksums verified; one batch in memory.

        Raises:
            ValueError: naming the file whose bytes changed.
        """
        for path in self.interactions_paths:
            yield from _read_batches(path, columns)

    def items(self, columns: list[str] | None = None) -> pa.Table:
        """The catalogue, page checksums verified; grows with the number of items.

        Raises:
            ValueError: naming the file if its bytes changed.
        """
        return pa.Table.from_batches(_read_batches(self.items_path, columns))


def read_canonical(folder: Path, *, verify: bool = True) -> CanonicalLog:
    """Open a canonical log.

    ``verify`` reads every file once (about 1 GB/s) to compare its sha256 with the
    manifest; without it only presence and sizes are checked.

    Raises:
        FileNotFoundError: for a missing folder, manifest or file.
        ValueError: for another format version, or a file that was cut or changed.
    """
    log = CanonicalLog(folder=folder, manifest=_read_manifest(folder))
    for name, facts in sorted(log.manifest["files"].items()):
        _check_file(folder / name, facts, verify=verify)
    present = {f"interactions/{p.name}" for p in folder.glob("interactions/*.parquet")}
    strangers = sorted(present - set(log.manifest["files"]))
    if strangers:
        raise ValueError(
            f"{folder / strangers[0]}: is not in manifest.json; move it away, or "
            "import the log again with its rows"
        )
    return log


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found, so {folder} is no canonical log; make one with "
            "`sgrec import`"
        )
    manifest = read_sealed(
        path,
        {"files": dict},
        format_version=FORMAT_VERSION,
        mend=MEND,
    )
    with naming(path, MEND):
        for facts in manifest["files"].values():
            int(facts["bytes"])
            str(facts["sha256"])
        if ITEMS not in manifest["files"]:
            raise ValueError("it lists no items.parquet")
        bool(manifest["has_clock"])
    return manifest


def _check_file(path: Path, facts: dict[str, Any], *, verify: bool) -> None:
    mend = "copy the folder again from its source, or import the log again"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is in manifest.json but not on disk; {mend}")
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise ValueError(
            f"{path}: has {size} bytes, manifest.json says {facts['bytes']} "
            f"(truncated or changed); {mend}"
        )
    if verify and sha256_file(path) != facts["sha256"]:
        raise ValueError(
            f"{path}: bytes changed (sha256 differs from manifest.json); {mend}"
        )


def _read_batches(path: Path, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); copy the folder again from its source, "
            "or import the log again"
        ) from error


def write_parts(
    folder: Path, batches: Iterable[pa.RecordBatch], rows_per_part: int = ROWS_PER_PART
) -> int:
    """Write batches as part-00000.parquet, ... of about ``rows_per_part`` rows.

    At least one batch is needed. Memory holds one batch and one row group.

    Returns:
        The number of rows written.
    """
    folder.mkdir()
    total = part_rows = num_parts = 0
    writer: pq.ParquetWriter | None = None
    try:
        for batch in batches:
            if writer is None or part_rows >= rows_per_part:
                if writer is not None:
                    writer.close()
                path = folder / f"part-{num_parts:05d}.parquet"
                writer = parquet_writer(path, batch.schema)
                num_parts, part_rows = num_parts + 1, 0
            writer.write_batch(batch, row_group_size=ROWS_PER_GROUP)
            part_rows += batch.num_rows
            total += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    return total


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer with page checksums, which default Parquet lacks."""
    return pq.ParquetWriter(
        path, schema, compression="zstd", write_page_checksum=True, version="2.6"
    )


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> sha256, bytes and rows of each Parquet file in ``folder``."""
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
            "rows": pq.read_metadata(path).num_rows,
        }
        for path in sorted(folder.rglob("*.parquet"))
    }
