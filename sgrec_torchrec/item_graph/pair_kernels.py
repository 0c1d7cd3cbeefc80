"""Compiled loops over the pairs of a log: emit, count, join, weigh.

A pair is one word, so that sorting words sorts pairs: source, target and tag, from the
highest bits to the lowest. A tag says whose pair it is and how it stands: fold, then
kind (target after the source, before it, or in its basket), then distance - 1.
"""

import numba
import numpy as np

AFTER, BEFORE, BASKET = range(3)
NUM_KINDS = 3


@numba.njit(nogil=True, cache=True)
def emit(first_U, stop_U, fold_U, items_R, times_R, max_distance, bits, words):  # type: ignore[no-untyped-def]
    """Write the words of all pairs of these users, both ways; returns how many."""
    item_bits, tag_bits = np.uint64(bits[0]), np.uint64(bits[1])
    source_shift = item_bits + tag_bits
    written = 0
    for user in range(len(first_U)):
        fold_tag = fold_U[user] * NUM_KINDS * max_distance
        for at in range(first_U[user], stop_U[user]):
            one = np.uint64(items_R[at])
            for other in range(at + 1, min(stop_U[user], at + max_distance + 1)):
                two = np.uint64(items_R[other])
                after, before = AFTER, BEFORE
                if times_R[at] == times_R[other]:
                    after = before = BASKET
                place = fold_tag + other - at - 1
                words[written] = (
                    (one << source_shift)
                    | (two << tag_bits)
                    | np.uint64(place + after * max_distance)
                )
                words[written + 1] = (
                    (two << source_shift)
                    | (one << tag_bits)
                    | np.uint64(place + before * max_distance)
                )
                written += 2
    return written


@numba.njit(nogil=True, cache=True)
def run_lengths(words, count_W):  # type: ignore[no-untyped-def]
    """Put each of the sorted words first once, its number beside; returns how many."""
    kept = -1
    for at in range(len(words)):
        if kept >= 0 and words[kept] == words[at]:
            count_W[kept] += 1
        else:
            kept += 1
            words[kept] = words[at]
            count_W[kept] = 1
    return kept + 1


@numba.njit(nogil=True, cache=True)
def join(words_A, count_A, words_B, count_B, words, count_W):  # type: ignore[no-untyped-def]
    """Two sorted runs -> one, the numbers of equal words added; returns its length."""
    at, other, written = 0, 0, 0
    while at < len(words_A) or other < len(words_B):
        takes_first = other == len(words_B) or (
            at < len(words_A) and words_A[at] <= words_B[other]
        )
        if takes_first:
            words[written], count_W[written] = words_A[at], count_A[at]
            if other < len(words_B) and words_B[other] == words_A[at]:
                count_W[written] += count_B[other]
                other += 1
            at += 1
        else:
            words[written], count_W[written] = words_B[other], count_B[other]
            other += 1
        written += 1
    return written


@numba.njit(nogil=True, cache=True)
def weigh(words, count_W, units_T, bits, span, factors, limit, edges):  # type: ignore[no-untyped-def]
    """Rows of weights from the words of their items, each cut to its heaviest.

    Args:
        units_T: int64, what a pair of each tag adds up to; a tag of 0 is left out.
        span: first item, and the one after the last; words are of these items.
        factors: by source and by target float64 [N], and what one unit weighs.
        limit: entries of a row; of equal weights, those of smaller targets stay.
        edges: indptr int64 [items + 1], targets int32 [W], weights float64 [W], to be
            filled.
    """
    item_bits, tag_bits = np.uint64(bits[0]), np.uint64(bits[1])
    tag_mask = (np.uint64(1) << tag_bits) - np.uint64(1)
    item_mask = (np.uint64(1) << item_bits) - np.uint64(1)
    row_N, column_N, unit = factors
    indptr, target_W, weight_W = edges
    at, written = 0, 0
    for item in range(span[0], span[1]):
        begin = written
        while at < len(words) and words[at] >> (item_bits + tag_bits) == np.uint64(
            item
        ):
            pair = words[at] >> tag_bits
            total = np.int64(0)
            while at < len(words) and words[at] >> tag_bits == pair:
                total += units_T[words[at] & tag_mask] * np.int64(count_W[at])
                at += 1
            target = np.int32(pair & item_mask)
            weight = total * unit * row_N[item] * column_N[target]
            if weight > 0.0:
                target_W[written], weight_W[written] = target, weight
                written += 1
        written = begin + cut_row(
            target_W[begin:written], weight_W[begin:written], limit
        )
        indptr[item - span[0] + 1] = written
    return written


@numba.njit(nogil=True, cache=True)
def cut_row(target_E, weight_E, limit):  # type: ignore[no-untyped-def]
    """Put the heaviest entries of a row first, in their order; returns how many.

    Of equal weights those that come first stay.
    """
    size = len(weight_E)
    if size <= limit:
        return size
    threshold = np.partition(weight_E, size - limit)[size - limit]
    ties = limit
    for at in range(size):
        ties -= weight_E[at] > threshold
    kept = 0
    for at in range(size):
        if weight_E[at] > threshold or (weight_E[at] == threshold and ties > 0):
            ties -= weight_E[at] == threshold
            target_E[kept], weight_E[kept] = target_E[at], weight_E[at]
            kept += 1
    return kept


@numba.njit(nogil=True, cache=True)
def cut_rows(indptr, target_E, weight_E, limit):  # type: ignore[no-untyped-def]
    """``cut_row`` of each row of a CSR matrix, in place; returns how many entries."""
    start, written = indptr[0], 0
    for row in range(len(indptr) - 1):
        stop = indptr[row + 1]
        kept = cut_row(target_E[start:stop], weight_E[start:stop], limit)
        for at in range(kept):
            target_E[written + at] = target_E[start + at]
            weight_E[written + at] = weight_E[start + at]
        start, written = stop, written + kept
        indptr[row + 1] = written
    return written
