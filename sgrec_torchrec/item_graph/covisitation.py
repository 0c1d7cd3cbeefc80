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

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig, check_choice
from sgrec_torchrec.item_graph import pair_kernels as kernels
from sgrec_torchrec.item_graph.pair_counts import PairCounts
from sgrec_torchrec.item_graph.pair_layout import UNIT
from sgrec_torchrec.item_graph.pair_runs import Run
from sgrec_torchrec.item_graph.row_order import (
    BoolArray,
    FloatArray,
    Rows,
    copied,
    only,
    stacked,
)
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
    counts: PairCounts,
    forms: Sequence[GraphConfig],
    *,
    without: int | None = None,
    wanted_N: BoolArray | None = None,
) -> list[sp.csr_matrix]:
    """The damped co-visits of each form, cut to its ``max_neighbours`` a row.

    Reads the counts once, whatever the number of forms. Holds 12 bytes an edge, and for
    a moment 12 more of one form.

    Args:
        without, wanted_N: as ``covisit_blocks``.

    Returns:
        float64 CSR [N, N] of each form; columns sorted, all entries > 0.
    """
    weighed: list[list[Rows]] = [[] for _ in forms]
    for _, _, blocks in covisit_blocks(
        counts, forms, without=without, wanted_N=wanted_N
    ):
        for kept, rows in zip(weighed, blocks, strict=True):
            kept.append(copied(rows))
    shape = (counts.layout.num_items, counts.layout.num_items)
    return [stacked(weighed.pop(0), shape) for _ in forms]


def covisit_blocks(
    counts: PairCounts,
    forms: Sequence[GraphConfig],
    *,
    without: int | None = None,
    wanted_N: BoolArray | None = None,
) -> Iterator[tuple[int, int, list[Rows]]]:
    """Yield (low, high, rows of each form): the same by ranges of items.

    Args:
        without: the fold whose events count neither as visits nor as popularity.
        wanted_N: bool, items whose rows are asked for; the others stay empty.
            None: all.
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
    for low, high, run in counts.blocks():
        found = [
            weighed_rows(run, layout.bits, (low, high), *weight, form.max_neighbours)
            for form, weight in zip(forms, weights, strict=True)
        ]
        if wanted_N is not None:
            found = [only(rows, wanted_N[low:high]) for rows in found]
        yield low, high, found


def weighed_rows(
    run: Run,
    bits: tuple[int, int],
    span: tuple[int, int],
    units_T: Int64Array,
    factors: tuple[FloatArray, FloatArray, float],
    limit: int,
) -> Rows:
    """A range of items: its counted pairs -> rows, each cut to its heaviest.

    Args:
        bits, units_T, factors: as ``pair_kernels.weigh`` takes them.
        span: first item, and the one after the last.
    """
    words, count_W = run
    indptr = np.zeros(span[1] - span[0] + 1, dtype=np.int64)
    target_W = np.empty(len(words), dtype=np.int32)
    weight_W = np.empty(len(words), dtype=np.float64)
    edges = (indptr, target_W, weight_W)
    kept = kernels.weigh(words, count_W, units_T, bits, span, factors, limit, edges)
    return np.diff(indptr), target_W[:kept], weight_W[:kept]
