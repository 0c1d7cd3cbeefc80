"""Histories -> candidates, and what each relation says of every one of them.

A row's candidates are the items that its relations vote for most: each relation gives
its weights, decayed over the history and scaled to sum to 1, and past items vote for
themselves. Features of a candidate, F = 5 R + 7:

    per relation    weight from the last basket, the largest from any event, and sums
                    decayed by .7, .9 and .98 a basket
    repeats         times in the history, sum decayed by .9, 1 / (1 + baskets since)
    others          vote, ln(1 + events), ln(1 + recent events), ln(1 + history length)

Distances count baskets (events of one timestamp), since the order within one means
nothing. Letters: E rows, H events of histories end to end, M candidates, F features.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numba
import numpy as np
import torch

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.relations import Relations
from sgrec_torchrec.item_graph.row_order import spans
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Int32Array,
    Int64Array,
    Sequences,
)

DECAYS = (0.7, 0.9, 0.98)
PER_RELATION = 2 + len(DECAYS)
NUM_OTHERS = 7
ROWS_PER_TASK = 512
Scratch = tuple[Float32Array, Int32Array, Int32Array]
"""Votes [N], all 0; places [N], all -1 (-2: reached in this row; else the candidate's
place); room for items reached [N]."""
_SPARE: deque[Scratch] = deque(maxlen=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """Events of E histories end to end, oldest first: what candidates are asked by."""

    indptr_E1: Int64Array
    items_H: Int32Array
    baskets_back_H: Int32Array
    """Baskets between the event and the end of its history; 0 in the newest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Candidates of E rows, in no order; unused places hold -1 and zeros."""

    item_EM: Int32Array
    features_EMF: Float32Array


def num_features(num_relations: int) -> int:
    """F."""
    return PER_RELATION * num_relations + NUM_OTHERS


def histories_of(sequences: Sequences, rows: EvalRows) -> Histories:
    """The histories of evaluation rows, with their baskets counted from the end."""
    first_E = sequences.offsets_U1[rows.user_E]
    low_E, high_E = first_E + rows.history_start_E, first_E + rows.history_end_E
    indptr_E1 = np.concatenate([[0], np.cumsum(high_E - low_E)]).astype(np.int64)
    row_H = spans(low_E, high_E)
    times_H = sequences.timestamps_R[row_H]
    # Baskets that end before each event, over all histories; then from a row's end.
    ends_H = np.append(0, times_H[1:] != times_H[:-1])[: len(row_H)]
    basket_H = np.cumsum(ends_H)
    newest_E = basket_H[indptr_E1[1:] - 1] if len(row_H) else np.zeros(len(rows))
    length_E = np.diff(indptr_E1)
    back_H = np.repeat(newest_E, length_E) - basket_H
    return Histories(
        indptr_E1=indptr_E1,
        items_H=sequences.items_R[row_H],
        baskets_back_H=back_H.astype(np.int32),
    )


def gather(
    relations: Relations,
    histories: Histories,
    config: EvidenceConfig,
    *,
    filter_seen: bool,
) -> Evidence:
    """Candidates of each history and their features. Ranks do not communicate.

    Uses as many threads as torch does; the result does not depend on them. Work grows
    with ``score_history`` times the neighbours of an item, whatever N; scratch memory,
    which is kept, with 12 N bytes a thread.

    Args:
        filter_seen: no item of the history is a candidate.
    """
    num_rows = len(histories.indptr_E1) - 1
    width = num_features(relations.num_relations)
    item_EM = np.full((num_rows, config.num_candidates), -1, dtype=np.int32)
    features_EMF = np.zeros((*item_EM.shape, width), dtype=np.float32)

    def fill(start: int) -> None:
        stop = min(start + ROWS_PER_TASK, num_rows)
        with _scratch(relations.num_items) as scratch:
            _fill(
                histories.indptr_E1[start : stop + 1],
                histories.items_H,
                histories.baskets_back_H,
                (relations.indptr_R1, relations.neighbours_E, relations.weights_E),
                (np.array(DECAYS, dtype=np.float32), config.score_history, filter_seen),
                scratch,
                item_EM[start:stop],
                features_EMF[start:stop],
            )

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(0, num_rows, ROWS_PER_TASK)))
    is_real = item_EM >= 0
    known = item_EM[is_real]
    length_E = np.diff(histories.indptr_E1)
    row = np.nonzero(is_real)[0]
    features_EMF[is_real, -3] = np.log1p(relations.popularity_N[known])
    features_EMF[is_real, -2] = np.log1p(relations.recent_N[known])
    features_EMF[is_real, -1] = np.log1p(length_E[row])
    return Evidence(item_EM=item_EM, features_EMF=features_EMF)


@contextmanager
def _scratch(num_items: int) -> Iterator[Scratch]:
    """Made once a thread for a catalogue; each row leaves it as it was."""
    held = None
    with suppress(IndexError):
        held = _SPARE.pop()
    if held is None or len(held[0]) != num_items:
        _SPARE.clear()
        held = (
            np.zeros(num_items, dtype=np.float32),
            np.full(num_items, -1, dtype=np.int32),
            np.empty(num_items, dtype=np.int32),
        )
    yield held
    _SPARE.append(held)  # not where a row failed: it may have left its marks


@numba.njit(nogil=True, cache=True)
def _fill(indptr, items, back, edges, settings, scratch, item_EM, features_EMF):  # type: ignore[no-untyped-def]
    """Both passes of each row: votes that pick candidates, then their features."""
    decays, score_history, _ = settings
    vote_N, place_N, reached = scratch
    for row in range(len(indptr) - 1):
        low, high = indptr[row], indptr[row + 1]
        start = max(low, high - score_history)
        num_reached = _vote(
            items, back, (low, start, high), edges, settings, vote_N, place_N, reached
        )
        count = _choose(vote_N, reached[:num_reached], item_EM[row])
        for place in range(count):
            item = item_EM[row, place]
            place_N[item] = place
            features_EMF[row, place, -4] = vote_N[item]
        _describe(
            items=items,
            back=back,
            span=(low, start, high),
            edges=edges,
            decays=decays,
            place_N=place_N,
            features_MF=features_EMF[row],
        )
        for at in range(num_reached):
            vote_N[reached[at]] = 0.0
            place_N[reached[at]] = -1


@numba.njit(nogil=True, cache=True)
def _vote(items, back, span, edges, settings, vote_N, place_N, reached):  # type: ignore[no-untyped-def]
    """Add up each relation's share for every item it reaches; returns how many."""
    low, start, high = span
    indptr, neighbours, weights = edges
    decays, _, filter_seen = settings
    num_items = len(vote_N)
    num_reached = 0
    for first in range(0, len(indptr) - 1, num_items):
        mass = np.float32(0.0)
        for at in range(start, high):
            decayed = decays[1] ** back[at]
            for edge in range(indptr[first + items[at]], indptr[first + items[at] + 1]):
                mass += decayed * weights[edge]
        if mass == 0.0:
            continue
        for at in range(start, high):
            share = decays[1] ** back[at] / mass
            for edge in range(indptr[first + items[at]], indptr[first + items[at] + 1]):
                item = neighbours[edge]
                if place_N[item] == -1:
                    place_N[item] = -2
                    reached[num_reached] = item
                    num_reached += 1
                vote_N[item] += share * weights[edge]
    mass = np.float32(0.0)
    for at in range(low, high):
        mass += decays[2] ** back[at]
    for at in range(low, high):
        item = items[at]
        if place_N[item] == -1:
            place_N[item] = -2
            reached[num_reached] = item
            num_reached += 1
        if filter_seen:
            vote_N[item] = -np.inf
        else:
            vote_N[item] += decays[2] ** back[at] / mass
    return num_reached


@numba.njit(nogil=True, cache=True)
def _choose(vote_N, reached, item_M):  # type: ignore[no-untyped-def]
    """Write the items with most votes; of equal ones those reached first."""
    num_reached, most = len(reached), len(item_M)
    if num_reached == 0:
        return 0
    threshold = np.float32(0.0)
    if num_reached > most:
        votes = vote_N[reached]
        threshold = max(threshold, np.partition(votes, num_reached - most)[-most])
    count = 0
    for item in reached:
        if vote_N[item] > threshold and count < most:
            item_M[count] = item
            count += 1
    for item in reached:
        if vote_N[item] == threshold and threshold > 0.0 and count < most:
            item_M[count] = item
            count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _describe(items, back, span, edges, decays, place_N, features_MF):  # type: ignore[no-untyped-def]
    """Sum, decay and compare what every relation says of the candidates."""
    low, start, high = span
    indptr, neighbours, weights = edges
    num_items = len(place_N)
    per_relation = 2 + len(decays)
    decayed = np.empty(len(decays))
    column = 0
    for first in range(0, len(indptr) - 1, num_items):
        for at in range(start, high):
            distance = back[at]
            for nth in range(len(decays)):
                decayed[nth] = decays[nth] ** distance
            for edge in range(indptr[first + items[at]], indptr[first + items[at] + 1]):
                place = place_N[neighbours[edge]]
                if place < 0:
                    continue
                weight = weights[edge]
                feature_F = features_MF[place]
                if distance == 0:
                    feature_F[column] += weight
                if weight > feature_F[column + 1]:
                    feature_F[column + 1] = weight
                for nth in range(len(decays)):
                    feature_F[column + 2 + nth] += weight * decayed[nth]
        column += per_relation
    for at in range(low, high):
        place = place_N[items[at]]
        if place >= 0:
            feature_F = features_MF[place]
            feature_F[column] += 1.0
            feature_F[column + 1] += decays[1] ** back[at]
            nearness = 1.0 / (1.0 + back[at])
            if nearness > feature_F[column + 2]:
                feature_F[column + 2] = nearness
