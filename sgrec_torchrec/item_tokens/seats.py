"""Capped assignment: which item takes which code when a code has few seats.

Shape letters: N items, n items of a chunk, M codes an item would take (best first),
K codes, P parents (items that share all earlier codes have one parent).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array

CHUNK_ROWS = 32_768
"""Items whose full cost rows [n, K] are held at once: 134 MB at K = 1024."""

CostRows = Callable[[Int64Array], Float32Array]
"""Items [n] -> cost of every code [n, K]; lower fits better."""


def seat_by_choice(
    choice_NM: Int32Array, cost_NM: Float32Array, seats: int, num_codes: int
) -> Int32Array:
    """Give every item the first of its choices that still has a seat.

    Round m seats those who are still waiting at their m-th choice; where a code is
    short of seats, those go first who would lose most by their next choice (regret,
    as in Vogel's approximation for transport problems), then lower item numbers.

    Args:
        choice_NM: codes each item would take, best first.
        cost_NM: their costs, rising along a row.
        seats: seats per code.
        num_codes: K.

    Returns:
        code_N, -1 where all M choices were taken. At most ``seats`` items a code.
        Deterministic. Time grows with M N log N, memory with N M.
    """
    num_items, num_choices = choice_NM.shape
    code_N = np.full(num_items, -1, dtype=np.int32)
    free_K = np.full(num_codes, seats, dtype=np.int64)
    waiting = np.arange(num_items)
    for round_ in range(num_choices):
        wanted = choice_NM[waiting, round_]
        following = min(round_ + 1, num_choices - 1)
        regret = cost_NM[waiting, following] - cost_NM[waiting, round_]
        granted = _first_in_line(wanted, -regret, free_K[wanted])
        code_N[waiting[granted]] = wanted[granted]
        free_K -= np.bincount(wanted[granted], minlength=num_codes)
        waiting = waiting[~granted]
        if not len(waiting):
            break
    return code_N


def seat_within_parents(
    parent_N: Int64Array,
    wanted_N: Int32Array,
    fit_N: Float32Array,
    seats: int,
    num_codes: int,
    cost_of: CostRows,
    occupied: Int64Array | None = None,
) -> Int32Array:
    """Keep the best-fitting items of every (parent, code); move the others.

    An item that must move takes the cheapest code of its parent that has a free seat.
    It works where every parent has seats for its items: K ``seats`` of them.

    Args:
        parent_N: parent of each item, any integers whose product with K fits int64.
        wanted_N: code that each item would take.
        fit_N: cost of that code; those with the lowest stay.
        seats: seats per (parent, code).
        num_codes: K.
        cost_of: full cost rows of the items that move.
        occupied: seats taken by items that never move, as parent * K + code,
            one entry an item.

    Returns:
        code_N. Time grows with N log N for the sort and with K per moved item; extra
        memory with N and ``CHUNK_ROWS`` K.
    """
    if occupied is None:
        occupied = np.zeros(0, dtype=np.int64)
    occupied = np.sort(occupied)
    slot_N = parent_N * num_codes + wanted_N
    kept_N = _first_in_line(slot_N, fit_N, seats - _count(occupied, slot_N))
    code_N = wanted_N.copy()
    movers = np.flatnonzero(~kept_N)
    if not len(movers):
        return code_N
    movers = movers[np.argsort(parent_N[movers], kind="stable")]
    taken = np.sort(np.concatenate([occupied, slot_N[kept_N]]))
    just_taken = np.zeros(0, dtype=np.int64)
    for start in range(0, len(movers), CHUNK_ROWS):
        chunk = movers[start : start + CHUNK_ROWS]
        parents_P, parent_n = np.unique(parent_N[chunk], return_inverse=True)
        slot_PK = parents_P[:, None] * num_codes + np.arange(num_codes)
        free_PK = seats - _count(taken, slot_PK) - _count(just_taken, slot_PK)
        code_N[chunk] = _nearest_free(parent_n, cost_of(chunk), free_PK)
        # Only the last parent can go on in the next chunk.
        new = parent_N[chunk] * num_codes + code_N[chunk]
        both = np.concatenate([just_taken, new])
        just_taken = np.sort(both[both // num_codes == parents_P[-1]])
    return code_N


def prefix_ids(codes_Nl: Int32Array, num_codes: int) -> Int64Array:
    """A dense id in [0, N) for each row, equal where all codes are equal."""
    ids_N = np.zeros(len(codes_Nl), dtype=np.int64)
    for level in range(codes_Nl.shape[1]):
        key_N = ids_N * num_codes + codes_Nl[:, level]
        ids_N = np.unique(key_N, return_inverse=True)[1].astype(np.int64)
    return ids_N


def seats_below(num_codes: int, levels_below: int) -> int:
    """Items that one prefix can hold: K ** levels_below, bounded to fit int64."""
    return int(min(num_codes**levels_below, 1 << 62))


def _first_in_line(
    slot_n: npt.NDArray[np.integer], cost_n: Float32Array, free_n: Int64Array
) -> npt.NDArray[np.bool_]:
    """Mask of the ``free`` cheapest items of every slot; ties: the earlier item."""
    granted = np.zeros(len(slot_n), dtype=np.bool_)
    if not len(slot_n):
        return granted
    order = np.lexsort((cost_n, slot_n))
    sorted_slot = slot_n[order]
    starts = np.flatnonzero(np.r_[True, sorted_slot[1:] != sorted_slot[:-1]])
    sizes = np.diff(np.r_[starts, len(order)])
    place_in_line = np.arange(len(order)) - np.repeat(starts, sizes)
    granted[order] = place_in_line < free_n[order]
    return granted


def _nearest_free(
    parent_n: Int64Array, cost_nK: Float32Array, free_PK: Int64Array
) -> Int32Array:
    """Rounds of proposals to the cheapest free code; uses up ``free_PK``.

    Every round fills a code of every parent that has waiting items, or seats them all:
    so there are at most K rounds.
    """
    code_n = np.full(len(parent_n), -1, dtype=np.int32)
    waiting = np.arange(len(parent_n))
    while len(waiting):
        parent = parent_n[waiting]
        open_wK = free_PK[parent] > 0
        cost_wK = np.where(open_wK, cost_nK[waiting], np.inf)
        wanted = cost_wK.argmin(axis=1)
        rows = np.arange(len(waiting))
        if not open_wK[rows, wanted].all():
            raise AssertionError("a parent has more items than seats")
        granted = _first_in_line(
            parent * free_PK.shape[1] + wanted,
            cost_wK[rows, wanted],
            free_PK[parent, wanted],
        )
        code_n[waiting[granted]] = wanted[granted]
        np.subtract.at(free_PK, (parent[granted], wanted[granted]), 1)
        waiting = waiting[~granted]
    return code_n


def _count(sorted_keys: Int64Array, keys: Int64Array) -> Int64Array:
    """How often each of ``keys`` (any shape) stands in ``sorted_keys``."""
    right = np.searchsorted(sorted_keys, keys, side="right")
    return np.asarray(right - np.searchsorted(sorted_keys, keys, side="left"))
