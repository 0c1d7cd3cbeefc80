"""The catalogue of a split: ``items.parquet`` <-> columns that a process maps.

Texts are filled and joined, vectors brought to one form once, when the split is
written; what opens it afterwards copies nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from sgrec_torchrec.files.text_column import TextColumn, one_piece, write_columns
from sgrec_torchrec.schema import Catalogue, Int64Array

# Any: Arrow's types are generic in some stub packages and absent in others.
pc: Any = pyarrow.compute

MAPPED_ITEMS = "items.arrow"
TEXT_COLUMNS = ("title", "brand", "category", "description")
COLUMN_OF = {
    "item_ids": "item_id",
    "titles": "title",
    "brands": "brand",
    "categories": "category",
    "texts": "text",
}
"""Fields of ``Catalogue`` that are texts, by their names in the mapped file."""
VECTORS = {"embedding_ND": "embedding", "sid_NL": "sid"}


def catalogue_of(table: Any, path: Path) -> Catalogue:
    """The rows of ``items.parquet`` in memory. Grows with the catalogue.

    Args:
        path: how errors name it.

    Raises:
        ValueError: naming an embedding or sid whose length differs from the first
            item's.
    """
    texts: dict[str, Any] = {
        name: pc.fill_null(one_piece(table[name].cast(pa.large_string())), "")
        if name in table.column_names
        else pa.repeat(pa.scalar("", pa.large_string()), table.num_rows)
        for name in TEXT_COLUMNS
    }
    joined, *others = texts.values()
    for text in others:
        # Arrow drops a row whose fields are all null where it is to skip nulls.
        is_apart = pc.and_(pc.not_equal(joined, ""), pc.not_equal(text, ""))
        space = pc.if_else(is_apart, " ", "").cast(pa.large_string())
        joined = pc.binary_join_element_wise(joined, text, space)
    return Catalogue(
        item_ids=TextColumn(table["item_id"]),
        titles=TextColumn(texts["title"]),
        brands=TextColumn(texts["brand"]),
        categories=TextColumn(texts["category"]),
        texts=TextColumn(joined),
        embedding_ND=_matrix(path, table, "embedding", np.float32),
        sid_NL=_matrix(path, table, "sid", np.int32),
    )


def write_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Write what ``map_catalogue`` takes."""
    columns: dict[str, Any] = {
        name: pa.array(getattr(catalogue, field), pa.large_string())
        for field, name in COLUMN_OF.items()
    }
    for field, name in VECTORS.items():
        matrix = getattr(catalogue, field)
        if matrix is not None:
            flat = pa.array(matrix.reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
    write_columns(path, columns)


def map_catalogue(columns: dict[str, Any]) -> Catalogue:
    """The catalogue over the pages of ``write_catalogue``'s file; nothing is copied."""
    texts: dict[str, Any] = {
        field: TextColumn(columns[name]) for field, name in COLUMN_OF.items()
    }
    matrices: dict[str, Any] = {
        field: columns[name].flatten().to_numpy().reshape(len(columns[name]), -1)
        if name in columns
        else None
        for field, name in VECTORS.items()
    }
    return Catalogue(**texts, **matrices)


def flatten_lists(column: Any) -> tuple[Int64Array, npt.NDArray[Any]]:
    """int64 [U + 1] offsets and the values of a list column, end to end.

    One chunk is read in place; several are joined by one copy.
    """
    ends = [np.zeros(1, dtype=np.int64)]
    values = []
    total = 0
    for lists in column.chunks:
        offsets = lists.offsets.to_numpy().astype(np.int64)
        values.append(lists.values.to_numpy()[offsets[0] : offsets[-1]])
        ends.append(offsets[1:] - offsets[0] + total)
        total = int(ends[-1][-1]) if len(offsets) > 1 else total
    if len(values) == 1:
        return np.concatenate(ends), values[0]
    empty = column.type.value_type.to_pandas_dtype()
    flat = np.concatenate(values) if values else np.zeros(0, dtype=empty)
    return np.concatenate(ends), flat


def _matrix(
    path: Path, table: Any, name: str, dtype: type[np.generic]
) -> npt.NDArray[Any] | None:
    if name not in table.column_names or not table.num_rows:
        return None
    column = table[name]
    kind = column.type
    lists = column.cast(pa.list_(kind.value_type)) if kind != pa.null() else column
    lengths = pc.list_value_length(lists).to_numpy()
    bad = np.flatnonzero(lengths != lengths[0])
    if lists.null_count or len(bad):
        raise ValueError(
            f"{path}: {name} is null or of another length than in row 0 (row "
            f"{bad[0] if len(bad) else 0}); give every item one, or drop the column"
        )
    if not lengths[0]:
        return None
    flat = flatten_lists(lists)[1]
    return flat.reshape(table.num_rows, -1).astype(dtype, copy=False)
