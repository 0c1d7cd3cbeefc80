"""Parquet files of the judge, read whole with their page checksums verified."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_checked(path: Path, mend: str, columns: list[str] | None = None) -> Any:
    """The table in ``path``, or some of its columns.

    Raises:
        ValueError: naming the file and the mend, where it cannot be read.
    """
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): {mend}") from error
