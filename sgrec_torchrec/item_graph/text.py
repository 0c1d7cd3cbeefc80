"""Item titles and brands to squared text similarity, the graph's second source.

TF-IDF as in ANCHORS.md: lower case, terms [a-z0-9]+, weight (1 + ln count) ln(N / df)
(or ln(N / df) alone), L2 norm; S is the cosine, zero on the diagonal, and S^2 enters
the graph.

Scale: terms and weights are columnar (arrow), 16 bytes per (item, term). S is never
held: each row is cut to its heaviest ``max_neighbours`` as it is made. What would grow
too fast is the work, sum of df^2 over terms: the most frequent terms (whose ln(N / df)
is smallest) leave the product, though not the norms, until PRODUCTS_PER_ITEM are left
for each item. A catalogue of up to FREE_PRODUCTS loses none.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.files.growing_array import forget
from sgrec_torchrec.files.text_column import TextColumn
from sgrec_torchrec.item_graph.heaviest import product_blocks
from sgrec_torchrec.item_graph.row_files import BLOCK_ENTRIES, Csr, written_rows
from sgrec_torchrec.item_graph.row_order import (
    BoolArray,
    Rows,
    copied,
    keep_heaviest,
    matrix_of,
    pieces,
    rows_in,
    spans,
    stacked,
)
from sgrec_torchrec.schema import Catalogue, Int64Array

FREE_PRODUCTS = 2e9
PRODUCTS_PER_ITEM = 2e3
SPREAD_ROWS = 1024


def item_texts(catalogue: Catalogue) -> TextColumn:
    """Title and brand of each item, as the graph compares them."""
    both: Any = [
        pa.array(one, pa.large_string()) for one in (catalogue.titles, catalogue.brands)
    ]
    space = pa.scalar(" ", pa.large_string())
    return TextColumn(pc.binary_join_element_wise(*both, space))


def tf_idf(texts: Sequence[str], *, binary: bool = False) -> sp.csr_matrix:
    """TF-IDF rows of length 1 (or 0, for a text without a telling term).

    Args:
        texts: one text per item.
        binary: count a term once however often it occurs.

    Returns:
        float64 CSR [N, number of terms], columns sorted.
    """
    text = pa.array(texts, type=pa.large_string())
    plain = pc.replace_substring_regex(pc.utf8_lower(text), "[^a-z0-9]+", " ")
    words: Any = pc.ascii_split_whitespace(pc.ascii_trim_whitespace(plain))
    item = pc.list_parent_indices(words).to_numpy(zero_copy_only=False)
    word = pc.list_flatten(words)
    # Splitting an empty text leaves one empty word.
    real = pc.not_equal(word, pa.scalar("", word.type)).to_numpy(zero_copy_only=False)
    coded = word.dictionary_encode()
    term = coded.indices.to_numpy(zero_copy_only=False)[real]
    shape = (len(texts), len(coded.dictionary))
    counts = sp.csr_matrix((np.ones(len(term)), (item[real], term)), shape=shape)
    counts.sum_duplicates()
    document_count = np.bincount(counts.indices, minlength=shape[1])
    weight = 1.0 if binary else 1.0 + np.log(counts.data)
    inverse = np.log(len(texts) / np.maximum(document_count, 1))
    counts.data = weight * inverse[counts.indices]
    length = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    counts.data *= np.repeat(scale, np.diff(counts.indptr))
    counts.eliminate_zeros()
    return counts


def squared_similarity(
    terms_NV: sp.csr_matrix,
    *,
    floor: float = 0.0,
    max_neighbours: int,
    wanted_N: BoolArray | None = None,
) -> sp.csr_matrix:
    """S^2 of the most similar ``max_neighbours`` items of each item.

    Args:
        terms_NV: rows as ``tf_idf`` returns them.
        floor: similarities (not squared) under this are dropped.
        wanted_N: bool, rows that are asked for; the others stay empty. None: all.

    Returns:
        float64 CSR [N, N], diagonal zero, columns sorted.
    """
    blocks = _similar(terms_NV, floor, max_neighbours, wanted_N)
    count = terms_NV.shape[0]
    return stacked([copied(rows) for rows in blocks], (count, count))


def _similar(
    terms_NV: sp.csr_matrix,
    floor: float,
    max_neighbours: int,
    wanted_N: BoolArray | None,
) -> Iterator[Rows]:
    """Its rows, some at a time."""
    terms_NV = _drop_frequent(terms_NV)
    for lengths, columns, values in product_blocks(
        Csr.of(terms_NV),
        Csr.of(terms_NV.T.tocsr()),
        max_neighbours,
        num_columns=terms_NV.shape[0],
        wanted_N=wanted_N,
        floor=floor,
        with_self=False,
        description="text similarity",
    ):
        values **= 2
        yield lengths, columns, values


def text_edges(
    catalogue: Catalogue, config: GraphConfig, *, wanted_N: BoolArray | None = None
) -> sp.csr_matrix:
    """S^2, cut to ``max_neighbours`` a row: float64 CSR [N, N].

    Args:
        wanted_N: as ``text_blocks``.
    """
    blocks = text_blocks(catalogue, config, wanted_N=wanted_N)
    count = len(catalogue)
    return stacked([copied(rows) for rows in blocks], (count, count))


def text_blocks(
    catalogue: Catalogue,
    config: GraphConfig,
    *,
    wanted_N: BoolArray | None = None,
    place: Path | None = None,
) -> Iterator[Rows]:
    """The same, some rows at a time from the first to the last.

    Items of one text have one row: it is multiplied once, then spread over them, so
    the work grows with the distinct texts (the Complete Journey has five items a text).
    These rows lie in a temporary folder meanwhile.

    Args:
        wanted_N: bool, items whose rows are asked for; others may be empty. None: all.
        place: where that folder is made. None: where temporary files go.
    """
    texts = item_texts(catalogue)
    terms_NV = tf_idf(texts, binary=config.binary_text)
    coded: Any = pa.array(texts, type=pa.large_string()).dictionary_encode()
    del texts
    text_N = coded.indices.to_numpy().astype(np.int64)
    first_D = np.unique(text_N, return_index=True)[1]
    wanted_D = None
    if wanted_N is not None:
        wanted_D = np.bincount(text_N[wanted_N], minlength=len(first_D)) > 0
    is_telling_D = np.diff(terms_NV.indptr)[first_D] > 0
    if len(first_D) < len(text_N):
        terms_NV = terms_NV[first_D]
    limit = config.max_neighbours
    similar = _similar(terms_NV, config.text_floor, limit, wanted_D)
    if len(first_D) == len(text_N):
        yield from similar
        return
    with tempfile.TemporaryDirectory(prefix="texts-", dir=place) as folder:
        spread = _spread(similar, is_telling_D, text_N, limit)
        yield from _rows_of_items(written_rows(Path(folder), spread), text_N, limit)


def _spread(
    similar: Iterable[Rows],
    is_telling_D: BoolArray,
    text_N: Int64Array,
    max_neighbours: int,
) -> Iterator[Rows]:
    """Rows of texts over texts -> over items, cut; a telling text is its own equal."""
    num_items, num_texts = len(text_N), len(is_telling_D)
    has_text = sp.csr_matrix(
        (np.ones(num_items), (text_N, np.arange(num_items))),
        shape=(num_texts, num_items),
    )
    start = 0
    for block in similar:
        for low, high, rows in pieces(block, SPREAD_ROWS):
            text = np.arange(start + low, start + high)
            itself = is_telling_D[text].astype(np.int64)
            alike = (itself, text[itself > 0].astype(np.int32), np.ones(itself.sum()))
            both = matrix_of(rows, num_texts) + matrix_of(alike, num_texts)
            # One more than asked: the item itself leaves its own row later.
            kept = keep_heaviest((both @ has_text).tocsr(), max_neighbours + 1)
            yield rows_in(kept)
        start += len(block[0])


def _rows_of_items(
    spread: Csr, text_N: Int64Array, max_neighbours: int
) -> Iterator[Rows]:
    """Each item has the row of its text, cut, without itself."""
    num_items = len(text_N)
    step = max(1, BLOCK_ENTRIES // (max_neighbours + 1))
    for low in range(0, num_items, step):
        text = text_N[low : low + step]
        first, last = spread.starts_N1[text], spread.starts_N1[text + 1]
        edge = spans(first, last)
        row = np.repeat(np.arange(low, low + len(text)), last - first)
        column, value = spread.column_E[edge], spread.value_E[edge]
        forget(spread.column_E, spread.value_E)
        other = row != column
        lengths = np.bincount(row[other] - low, minlength=len(text))
        rows = (lengths, column[other], value[other])
        yield rows_in(keep_heaviest(matrix_of(rows, num_items), max_neighbours))


def _drop_frequent(terms_NV: sp.csr_matrix) -> sp.csr_matrix:
    """Leave out the most frequent terms, until the product costs what is allowed."""
    document_count = np.bincount(terms_NV.indices, minlength=terms_NV.shape[1])
    rare_first = np.argsort(document_count, kind="stable")
    work = np.cumsum(document_count[rare_first].astype(np.float64) ** 2)
    allowed = max(FREE_PRODUCTS, PRODUCTS_PER_ITEM * terms_NV.shape[0])
    is_frequent = np.zeros(terms_NV.shape[1], dtype=np.bool_)
    is_frequent[rare_first[work > allowed]] = True
    if not is_frequent.any():
        return terms_NV
    reduced = terms_NV.copy()
    reduced.data[is_frequent[reduced.indices]] = 0.0
    reduced.eliminate_zeros()
    return reduced
