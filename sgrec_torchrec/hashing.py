"""Integers to pseudo-random numbers, by hash: the only source of randomness in logs.

The finaliser of splitmix64 stands here for all: for numpy and compiled code, and in a
second form for tensors. torch is not imported.

Nothing here keeps state, so a draw depends on what it is for and never on how many
ranks, workers or earlier draws there were. A hash starts with the run's seed and the
number of its stream, then what it belongs to; streams in use:

    hash64(seed, BASKET, user, timestamp, item, copy)   order inside a basket
    hash64(seed, ORDER, epoch, sample)                  order of an epoch
    hash64(seed, POSITION, epoch, sample, position)     noise on a position
    hash64(seed, FOLD, user[, event])                   held-out folds and rows
    hash64(seed, LABEL_USER, user)                      whom the judge learns from
    hash64(seed, JUDGED_USER, user)                     whom it judges
    hash64(seed, CANDIDATE, user, draw)                 negatives and rollouts
    hash64(seed, PROMPT, epoch, prompt)                 order of post-training
    hash64(seed, ROLLOUT, step, prompt)                 its rollouts
    hash64(hash64(seed, TEACHER, epoch, sample, position), draw)  teacher

``sample`` is a sample's number in the log, ``position`` counts from its begin marker.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

UInt64Array = npt.NDArray[np.uint64]
HashPart = int | np.integer | npt.NDArray[np.integer]

BASKET = 1
ORDER = 2
POSITION = 3
TEACHER = 4
FOLD = 5
LABEL_USER = 6
JUDGED_USER = 7
CANDIDATE = 8
PROMPT = 9
ROLLOUT = 10

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd: splitmix64's step from one state to the next."""
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_PIECE = 1 << 16
"""Elements of a tensor that are mixed at once, so that they stay in the cache."""


def hash64(*parts: HashPart) -> UInt64Array:
    """Hash integers, in order, to 64 bits: ``h = mix(h + golden + part)`` from h = 0.

    ``mix`` is ``splitmix64``, so a single part p gives what that generator yields first
    from state p. Arrays of any integer type broadcast against each other; negative
    numbers count modulo 2^64.

    Returns:
        uint64 array of the broadcast shape (0-dimensional where all parts are ints).

    Raises:
        TypeError: for a part that is not integer.
    """
    state: UInt64Array = np.zeros((), dtype=np.uint64)
    for part in parts:
        word = np.add(state, _word(part))
        # numpy warns of overflow between scalars, never between arrays.
        state = splitmix64(np.atleast_1d(word)).reshape(np.shape(word))
    return state


def fold_of(seed: int, user: HashPart, num_folds: int) -> npt.NDArray[np.int64]:
    """Which of the held-out folds each user is dealt into, int64 of the same shape."""
    hashed = hash64(seed, FOLD, user)
    return (hashed % np.uint64(num_folds)).astype(np.int64)


def splitmix64(words: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64: a bijection whose every bit hangs on all of them.

    Steele, Lea and Flood, OOPSLA 2014. numba compiles it as it stands, for a scalar.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(MIX_1)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(MIX_2)
    words ^= words >> np.uint64(31)
    return words


def splitmix64_(state: "Tensor") -> "Tensor":
    """``splitmix64`` of an int64 tensor, in place: products wrap.

    The same bits on CPU and CUDA, and those of numpy's uint64.
    """
    pieces = [state]
    if not state.is_cuda and state.is_contiguous():
        flat = state.view(-1)
        pieces = [flat[at : at + _PIECE] for at in range(0, len(flat), _PIECE)]
    for piece in pieces:
        piece.bitwise_xor_(shift_right(piece, 30)).mul_(signed(MIX_1))
        piece.bitwise_xor_(shift_right(piece, 27)).mul_(signed(MIX_2))
        piece.bitwise_xor_(shift_right(piece, 31))
    return state


def shift_right(value: "Tensor", num_bits: int) -> "Tensor":
    """Logical shift of int64: torch's own keeps the sign."""
    return (value >> num_bits).bitwise_and_((1 << (64 - num_bits)) - 1)


def signed(word: int) -> int:
    """The int64 that has the bits of a word."""
    return word - (1 << 64) if word >> 63 else word


def uniform(hashed: UInt64Array) -> npt.NDArray[np.float64]:
    """The top 53 bits of each hash as float64 in [0, 1), evenly spaced."""
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _word(part: HashPart) -> UInt64Array:
    """The part plus the golden constant, modulo 2^64, as an array."""
    if isinstance(part, int):
        return np.array((part + GOLDEN_GAMMA) & _MASK, dtype=np.uint64)
    array = np.asarray(part)
    if array.dtype.kind == "i":
        array = array.astype(np.int64).view(np.uint64)
    elif array.dtype.kind != "u":
        raise TypeError(f"hash64 takes integers, not {array.dtype}")
    return np.asarray(array.astype(np.uint64) + np.uint64(GOLDEN_GAMMA))
