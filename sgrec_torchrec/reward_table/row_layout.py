"""Pairs <-> words of rows: the layout that ``segment`` describes."""

import numba
import numpy as np

from sgrec_torchrec.reward_table.lookup import NO_ITEM


@numba.njit(nogil=True, cache=True)
def pack_rows(items_P, codes_P, lengths_U):  # type: ignore[no-untyped-def]
    """Words uint32 of U rows, and the number of places of each row, int64 [U].

    Args:
        items_P: uint32, all rows end to end, rising within each.
        codes_P: uint16, their rewards.
        lengths_U: int64 pairs of each row.
    """
    places_U = lengths_U + lengths_U % 2
    words = np.empty(places_U.sum() // 2 * 3, np.uint32)
    halves = words.view(np.uint16)
    pair, word = 0, 0
    for row in range(len(lengths_U)):
        length, places = lengths_U[row], places_U[row]
        rewards = 2 * (word + places)
        for nth in range(length):
            words[word + nth] = items_P[pair + nth]
            halves[rewards + nth] = codes_P[pair + nth]
        if length < places:
            words[word + length] = np.uint32(NO_ITEM)
            halves[rewards + length] = np.uint16(0)
        pair += length
        word += places // 2 * 3
    return words, places_U


@numba.njit(nogil=True, cache=True)
def unpack_rows(words, offsets_U1):  # type: ignore[no-untyped-def]
    """Items uint32 and rewards uint16 of each place, padding included."""
    items_P = np.empty(offsets_U1[-1], np.uint32)
    codes_P = np.empty(offsets_U1[-1], np.uint16)
    halves = words.view(np.uint16)
    for row in range(len(offsets_U1) - 1):
        low, places = offsets_U1[row], offsets_U1[row + 1] - offsets_U1[row]
        word = low // 2 * 3
        for nth in range(places):
            items_P[low + nth] = words[word + nth]
            codes_P[low + nth] = halves[2 * (word + places) + nth]
    return items_P, codes_P


@numba.njit(nogil=True, cache=True)
def pad_aspects(aspects_PA, lengths_U):  # type: ignore[no-untyped-def]
    """A line of zeros behind each row of an odd number of pairs. uint16 [places, A]."""
    num_places = (lengths_U + lengths_U % 2).sum()
    padded = np.zeros((num_places, aspects_PA.shape[1]), np.uint16)
    pair, place = 0, 0
    for row in range(len(lengths_U)):
        length = lengths_U[row]
        padded[place : place + length] = aspects_PA[pair : pair + length]
        pair += length
        place += length + length % 2
    return padded
