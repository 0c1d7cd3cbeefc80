"""hash64 is splitmix64, broadcasts like numpy, and looks uniform."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sgrec_torchrec.hashing import (
    GOLDEN_GAMMA,
    hash64,
    shift_right,
    signed,
    splitmix64,
    splitmix64_,
    uniform,
)
from sgrec_torchrec.reward_table.hash_map import mix

MASK = (1 << 64) - 1
Finaliser = Callable[[list[int]], list[int]]


def by_numpy(words: list[int]) -> list[int]:
    return splitmix64(np.array(words, dtype=np.uint64)).tolist()


def by_torch(words: list[int]) -> list[int]:
    state = torch.tensor([signed(word) for word in words], dtype=torch.int64)
    return [word & MASK for word in splitmix64_(state).tolist()]


def by_numba(words: list[int]) -> list[int]:
    return [int(mix(np.uint64(word))) for word in words]


FINALISERS = pytest.mark.parametrize("finalise", [by_numpy, by_torch, by_numba])


def reference(*parts):
    """splitmix64 in Python integers."""
    state = 0
    for part in parts:
        word = (state + 0x9E3779B97F4A7C15 + part) & MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        state = word ^ (word >> 31)
    return state


@FINALISERS
@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        # Outputs of the reference implementation (Vigna, splitmix64.c) from state 0.
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        # The first of state 1234567 (Rosetta Code).
        (1234567, [6457827717110365317, 3203168211198807973]),
    ],
)
def test_the_published_sequence_is_given(
    finalise: Finaliser, seed: int, expected: list[int]
) -> None:
    steps = range(1, 1 + len(expected))
    assert finalise([(seed + step * GOLDEN_GAMMA) & MASK for step in steps]) == expected


@FINALISERS
def test_finalisers_equal_the_python_reference(finalise: Finaliser) -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**64, 500, dtype=np.uint64).tolist()
    # The sign bit alone, and what an arithmetic shift would fill with ones.
    words += [0, 1, MASK, 1 << 63, (1 << 63) - 1, MASK - 1]
    assert finalise(words) == [reference(word - GOLDEN_GAMMA) for word in words]


@pytest.mark.parametrize("shape", [(0,), (65_537,), (3, 50_000)])
def test_a_tensor_of_any_size_is_mixed_in_place(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
    expected = splitmix64(state.numpy().view(np.uint64))
    assert splitmix64_(state) is state
    assert np.array_equal(state.numpy().view(np.uint64), expected)


def test_a_tensor_that_does_not_lie_in_one_piece_is_mixed_too() -> None:
    state = torch.arange(12).view(3, 4)
    expected = splitmix64_(state.clone()).t()
    assert torch.equal(splitmix64_(state.t()), expected)


def test_the_sign_is_not_shifted_in() -> None:
    value = torch.tensor([-1, -(2**63), 5])
    assert shift_right(value, 60).tolist() == [15, 8, 0]
    assert [signed(word) for word in (0, MASK, 1 << 63)] == [0, -1, -(2**63)]


def test_single_part_is_the_published_first_output_of_splitmix64():
    # seeds 0 and 1234567, first outputs as in the reference implementation's tests
    assert int(hash64(0)) == 0xE220A8397B1DCDAF
    assert int(hash64(1234567)) == 6457827717110365317


@pytest.mark.parametrize("parts", [(3,), (-1, 2), (2**63, -(2**63)), (0, 0, 0)])
def test_ints_equal_the_python_reference(parts):
    assert int(hash64(*parts)) == reference(*parts)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint64, np.uint8])
def test_arrays_of_any_integer_type_equal_the_ints(dtype):
    values = np.array([0, 1, 100], dtype=dtype)
    assert hash64(7, values).tolist() == [reference(7, int(v)) for v in values]


def test_negative_array_entries_equal_negative_ints():
    assert int(hash64(np.array([-5], dtype=np.int16))[0]) == reference(-5)


def test_parts_broadcast():
    hashed = hash64(np.arange(3)[:, None], np.arange(4))
    assert hashed.shape == (3, 4)
    assert int(hashed[2, 3]) == reference(2, 3)


def test_order_of_parts_matters():
    assert int(hash64(1, 2)) != int(hash64(2, 1))


def test_float_parts_are_refused():
    with pytest.raises(TypeError, match="integers, not float64"):
        hash64(np.zeros(2))


def test_uniform_is_in_range_and_even():
    draws = uniform(hash64(0, np.arange(100_000)))
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    # 10,000 expected a bin, standard deviation 95
    assert abs(counts - 10_000).max() < 500


def test_uniform_of_all_ones_is_below_one():
    top = np.array([MASK], dtype=np.uint64)
    assert uniform(top)[0] == 1.0 - 2.0**-53
