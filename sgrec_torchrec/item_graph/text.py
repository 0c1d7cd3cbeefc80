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

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.files.text_column import TextColumn
from sgrec_torchrec.item_graph.heaviest import heaviest_product
from sgrec_torchrec.item_graph.row_order import BoolArray, keep_heaviest
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
    terms_NV = _drop_frequent(terms_NV)
    similar = heaviest_product(
        terms_NV,
        terms_NV.T.tocsr(),
        max_neighbours,
        wanted_N=wanted_N,
        floor=floor,
        with_self=False,
        description="text similarity",
    )
    similar.data **= 2
    return similar


def text_edges(
    catalogue: Catalogue, config: GraphConfig, *, wanted_N: BoolArray | None = None
) -> sp.csr_matrix:
    """S^2, cut to ``max_neighbours`` a row: float64 CSR [N, N].

    Items of one text have one row: it is multiplied once, then spread over them, so
    the work grows with the distinct texts (the Complete Journey has five items a text).

    Args:
        wanted_N: bool, items whose rows are asked for; others may be empty. None: all.
    """
    texts = item_texts(catalogue)
    terms_NV = tf_idf(texts, binary=config.binary_text)
    coded: Any = pa.array(texts, type=pa.large_string()).dictionary_encode()
    text_N = coded.indices.to_numpy().astype(np.int64)
    first_D = np.unique(text_N, return_index=True)[1]
    wanted_D = None
    if wanted_N is not None:
        wanted_D = np.bincount(text_N[wanted_N], minlength=len(first_D)) > 0
    similar = squared_similarity(
        terms_NV[first_D],
        floor=config.text_floor,
        max_neighbours=config.max_neighbours,
        wanted_N=wanted_D,
    )
    if len(first_D) == len(texts):
        return similar
    is_telling_D = np.diff(terms_NV.indptr)[first_D] > 0
    similar = similar + sp.diags_array(is_telling_D.astype(np.float64))
    return _spread(similar.tocsr(), text_N, config.max_neighbours)


def _spread(
    similar: sp.csr_matrix, text_N: Int64Array, max_neighbours: int
) -> sp.csr_matrix:
    """Rows over distinct texts -> rows over items, cut, without the diagonal."""
    num_items, num_texts = len(text_N), similar.shape[0]
    has_text = sp.csr_matrix(
        (np.ones(num_items), (text_N, np.arange(num_items))),
        shape=(num_texts, num_items),
    )
    blocks = []
    for low in range(0, num_texts, SPREAD_ROWS):
        spread = similar[low : low + SPREAD_ROWS] @ has_text
        # One more than asked: the item itself leaves its own row below.
        blocks.append(keep_heaviest(spread.tocsr(), max_neighbours + 1))
    rows = sp.vstack(blocks, format="csr")[text_N].tocoo()
    other = rows.row != rows.col
    edges = sp.csr_matrix(
        (rows.data[other], (rows.row[other], rows.col[other])), shape=rows.shape
    )
    return keep_heaviest(edges, max_neighbours)


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
