"""Top-k lists to what accuracy does not say: coverage, novelty, diversity, slices.

Shape letters: E rows, K list length, N items, D width. Slots holding -1 are empty and
count nowhere. Memory: one block of rows times K vectors at a time.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sgrec_torchrec.evaluation.ranking import metric_names, metric_values
from sgrec_torchrec.schema import EvalRows, Float32Array, Int32Array, Int64Array

SHORT_HISTORY = 5
BLOCK_ROWS = 4096

Vectors: TypeAlias = Float32Array | npt.NDArray[np.float64] | sp.csr_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """The lists' first k items, all rows together. NaN: nothing to average."""

    k: int
    coverage: float
    """Share of the catalogue that is in some list."""
    novelty: float
    """Mean bits of an item's share of the events, from ``novelty``."""
    diversity: float
    """Mean of 1 - cosine over pairs within a list; 1 is most diverse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Metrics over some of the rows; all NaN where there is none."""

    num_rows: int
    metrics: dict[str, float]


def beyond_accuracy(
    items_EK: Int32Array, popularity_N: Int64Array, vectors_ND: Vectors, k: int = 10
) -> Beyond:
    """Coverage, novelty and diversity of the lists' first ``k`` items.

    Args:
        popularity_N: int64, events of each item in the period that was learned from.
        vectors_ND: item vectors, as ``diversity`` takes them.
    """
    top = items_EK[:, :k]
    return Beyond(
        k=k,
        coverage=coverage(top, len(popularity_N)),
        novelty=novelty(top, popularity_N),
        diversity=diversity(top, vectors_ND),
    )


def coverage(items_EK: Int32Array, num_items: int) -> float:
    """Share of the catalogue's ``num_items`` that stands in at least one list."""
    return len(np.unique(items_EK[items_EK >= 0])) / num_items


def novelty(items_EK: Int32Array, popularity_N: Int64Array) -> float:
    """Mean over recommended items of -log2 of their share of all events.

    Mean self-information (Zhou et al., PNAS 2010, there per user and object), with one
    event added to each item so that an unseen item has a finite value.
    """
    listed = items_EK[items_EK >= 0]
    if not len(listed):
        return float("nan")
    share_N = (popularity_N + 1) / (popularity_N.sum() + len(popularity_N))
    return float(-np.log2(share_N[listed]).mean())


def diversity(items_EK: Int32Array, vectors_ND: Vectors) -> float:
    """Mean over lists of the mean of 1 - cosine over pairs of distinct places.

    Intra-list distance (Ziegler et al., WWW 2005, as a mean). Lists of fewer than two
    items do not count.

    Args:
        vectors_ND: one vector per item, dense (embeddings) or sparse (the TF-IDF rows
            of ``item_graph.text``); rows need not have length 1, a zero row has cosine
            0 with every other.
    """
    means = []
    is_sparse = sp.issparse(vectors_ND)
    for start in range(0, len(items_EK), BLOCK_ROWS):
        block = items_EK[start : start + BLOCK_ROWS]
        row, place = np.nonzero(block >= 0)
        items = block[row, place]
        unit, is_unit = _unit_rows(vectors_ND[items], is_sparse)
        membership = sp.csr_matrix(
            (np.ones(len(row)), (row, np.arange(len(row)))),
            shape=(len(block), len(row)),
        )
        total = membership @ unit
        squared = total.power(2) if is_sparse else total * total
        # |sum of v|^2 holds each pair twice, and every vector with itself once.
        own = np.bincount(row, weights=is_unit, minlength=len(block))
        twice_cosines = np.asarray(squared.sum(axis=1)).ravel() - own
        count = np.bincount(row, minlength=len(block)).astype(np.float64)
        enough = count >= 2
        pairs = count[enough] * (count[enough] - 1)
        means.append(1.0 - twice_cosines[enough] / pairs)
    values = np.concatenate(means) if means else np.empty(0)
    return float(values.mean()) if len(values) else float("nan")


def slice_metrics(
    rank_E: Int32Array, chosen_E: npt.NDArray[np.bool_], ks: tuple[int, ...] = (10,)
) -> Slice:
    """HR and NDCG over the chosen rows alone."""
    names = metric_names(ks)
    chosen = rank_E[chosen_E]
    if not len(chosen):
        return Slice(num_rows=0, metrics=dict.fromkeys(names, float("nan")))
    means = metric_values(chosen, ks).mean(axis=0).tolist()
    return Slice(num_rows=len(chosen), metrics=dict(zip(names, means, strict=True)))


def cold_rows(rows: EvalRows, popularity_N: Int64Array) -> npt.NDArray[np.bool_]:
    """Rows whose target was never seen in the period that was learned from."""
    cold: npt.NDArray[np.bool_] = popularity_N[rows.target_E] == 0
    return cold


def short_history_rows(
    rows: EvalRows, longest: int = SHORT_HISTORY
) -> npt.NDArray[np.bool_]:
    """Rows whose history holds at most ``longest`` events."""
    short: npt.NDArray[np.bool_] = (
        rows.history_end_E - rows.history_start_E
    ) <= longest
    return short


def _unit_rows(vectors: Any, is_sparse: bool) -> tuple[Any, npt.NDArray[np.float64]]:
    """Rows scaled to length 1 in float64, and 1.0 where a row has a length at all."""
    if is_sparse:
        square = np.asarray(vectors.power(2).sum(axis=1)).ravel()
    else:
        vectors = np.asarray(vectors, dtype=np.float64)
        square = (vectors * vectors).sum(axis=1)
    scale = np.divide(1.0, np.sqrt(square), out=np.zeros(len(square)), where=square > 0)
    return sp.diags_array(scale) @ vectors, (square > 0).astype(np.float64)
