"""Co-visitation: how often item j stands near item i, weighed and damped.

C[i, j] sums, over pairs of events of one user at most ``max_distance`` places apart,
``forward_weight`` / distance^x where j comes after i and ``backward_weight`` /
distance^x where it comes before, with x the ``distance_exponent``. Events of one basket
(same user, same timestamp) have no order in time, only that of a seeded shuffle: such a
pair weighs the mean of the two weights both ways, with the distance the shuffle gave.
In a log of single-event baskets the defaults are the plain formula of ANCHORS.md.

Pairs are counted once, as integers (``pair_counts``); a form only weighs them. A pair's
weight is rounded to 2^-20.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig, check_choice
from sgrec_torchrec.item_graph import pair_kernels as kernels
from sgrec_torchrec.item_graph.pair_counts import PairCounts
from sgrec_torchrec.item_graph.pair_layout import UNIT
from sgrec_torchrec.item_graph.row_order import Rows, stacked
from sgrec_torchrec.schema import Int32Array, Int64Array, Sequences

CHUNK_EVENTS = 4_000_000


def fit_ends(sequences: Sequences, fit_on: str) -> Int32Array:
    """Number of each user's events that may be learned from, int32 [U].

    Raises:
        ValueError: unless ``fit_on`` is "train" or "train+valid".
    """
    check_choice("fit_on", fit_on, ("train", "train+valid"))
    return sequences.train_end_U if fit_on == "train" else sequences.valid_end_U


def popularity(sequences: Sequences, end_U: Int32Array) -> Int64Array:
    """Events of each item among the first ``end_U[u]`` of each user, int64 [N]."""
    count_N = np.zeros(sequences.num_items, dtype=np.int64)
    offsets, user = sequences.offsets_U1, 0
    while user < sequences.num_users:
        limit = offsets[user] + CHUNK_EVENTS
        after = int(np.searchsorted(offsets, limit, side="right")) - 1
        after = max(after, user + 1)
        end_row = offsets[user:after] + end_U[user:after]
        row = np.arange(offsets[user], offsets[after])
        is_learned = row < np.repeat(end_row, np.diff(offsets[user : after + 1]))
        count_N += np.bincount(
            sequences.items_R[row[is_learned]], minlength=sequences.num_items
        )
        user = after
    return count_N


def covisitation_edges(
    counts: PairCounts, forms: Sequence[GraphConfig], *, without: int | None = None
) -> list[sp.csr_matrix]:
    """The damped co-visits of each form, cut to its ``max_neighbours`` a row.

    Reads the counts once, whatever the number of forms. Holds 12 bytes an edge, and for
    a moment 12 more of one form.

    Args:
        without: the fold whose events count neither as visits nor as popularity.

    Returns:
        float64 CSR [N, N] of each form; columns sorted, all entries > 0.
    """
    layout = counts.layout
    damped_N = 1.0 + counts.popularity(without)
    weights = [
        (
            layout.units(form, without),
            (damped_N**-form.row_exponent, damped_N**-form.column_exponent, UNIT),
        )
        for form in forms
    ]
    weighed: list[list[Rows]] = [[] for _ in forms]
    for low, high, (words, count_W) in counts.blocks():
        for rows, form, (units_T, factors) in zip(weighed, forms, weights, strict=True):
            indptr = np.zeros(high - low + 1, dtype=np.int64)
            target_W = np.empty(len(words), dtype=np.int32)
            weight_W = np.empty(len(words), dtype=np.float64)
            kept = kernels.weigh(
                words,
                count_W,
                units_T,
                layout.bits,
                (low, high),
                factors,
                form.max_neighbours,
                (indptr, target_W, weight_W),
            )
            rows.append(
                (np.diff(indptr), target_W[:kept].copy(), weight_W[:kept].copy())
            )
    shape = (layout.num_items, layout.num_items)
    return [stacked(weighed.pop(0), shape) for _ in forms]
