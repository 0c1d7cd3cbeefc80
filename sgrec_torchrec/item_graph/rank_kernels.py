"""Compiled: where a target stands among all items, by many forms of a graph at once."""

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def rank_targets(history, targets, edges, forms, filter_seen, ties, scratch, ranks):  # type: ignore[no-untyped-def]
    """Place of each row's target from 1 on; 0 where its score is 0.

    Args:
        history: indptr and items, oldest first.
        targets: an item a row.
        edges: visits and text, each indptr, columns and weights.
        forms: decays [D], weights of the text [W], newest events that are asked.
        filter_seen: whether items of the history stand nowhere.
        ties: int64 [N], of equal scores the item of the smaller one stands before.
        scratch: float64 [N, 2, D] and bool [N] of zeros, left as zeros; int32 [N + 1].
        ranks: int64 [rows, D, W], to be filled.
    """
    indptr, items = history
    decay_D, weight_W, score_history = forms
    score_N2D, is_reached_N, reached = scratch
    visit_C, text_C = np.empty(len(reached)), np.empty(len(reached))
    for row in range(len(targets)):
        low, high = indptr[row], indptr[row + 1]
        count = _reach(
            items[max(low, high - score_history) : high],
            edges,
            decay_D,
            score_N2D,
            is_reached_N,
            reached,
        )
        if filter_seen:
            for at in range(low, high):
                score_N2D[items[at]] = 0.0
        target = targets[row]
        for decay in range(len(decay_D)):
            visit, text = score_N2D[target, 0, decay], score_N2D[target, 1, decay]
            for at in range(count):
                visit_C[at] = score_N2D[reached[at], 0, decay]
                text_C[at] = score_N2D[reached[at], 1, decay]
            for place in range(len(weight_W)):
                ranks[row, decay, place] = _rank(
                    visit_C[:count],
                    text_C[:count],
                    weight_W[place],
                    visit + weight_W[place] * text,
                    ties[target],
                    ties,
                    reached,
                )
        for at in range(count):
            is_reached_N[reached[at]] = False
            for kind in range(2):
                for decay in range(len(decay_D)):
                    score_N2D[reached[at], kind, decay] = 0.0


@numba.njit(nogil=True, cache=True)
def _reach(items, edges, decay_D, score_N2D, is_reached_N, reached):  # type: ignore[no-untyped-def]
    """Add up what each event gives, by kind; returns how many items are reached."""
    count = 0
    num_decays = len(decay_D)
    share_D = np.empty(num_decays)
    for at in range(len(items)):
        for decay in range(num_decays):
            share_D[decay] = decay_D[decay] ** (len(items) - 1 - at)
        for kind in range(2):
            indptr, columns, weights = edges[kind]
            for edge in range(indptr[items[at]], indptr[items[at] + 1]):
                column, weight = columns[edge], weights[edge]
                # No branch: whether an item is new cannot be foretold.
                reached[count] = column
                count += not is_reached_N[column]
                is_reached_N[column] = True
                for decay in range(num_decays):
                    score_N2D[column, kind, decay] += share_D[decay] * weight
    return count


@numba.njit(nogil=True, cache=True)
def _rank(visit_C, text_C, weight, own, own_tie, ties, reached):  # type: ignore[no-untyped-def]
    if own <= 0.0:
        return 0
    ahead, tied = 0, 0
    for at in range(len(visit_C)):
        score = visit_C[at] + weight * text_C[at]
        ahead += score > own
        tied += score == own
    if tied > 1:
        for at in range(len(visit_C)):
            if visit_C[at] + weight * text_C[at] == own:
                ahead += ties[reached[at]] < own_tie
    return ahead + 1
