"""Balanced residual k-means: caps, tiny catalogues, determinism, errors."""

import math

import numpy as np
import pytest

from sgrec_torchrec.item_tokens.quantizer import (
    CROWDING,
    num_centroids,
    quantize,
    reconstruction_error,
)
from sgrec_torchrec.item_tokens.seats import seat_by_choice, seat_within_parents


def blobs(num_items: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Points around few centres of very unequal weight."""
    generator = np.random.default_rng(seed)
    centre = generator.choice(4, num_items, p=[0.7, 0.1, 0.1, 0.1])
    noise = 0.1 * generator.standard_normal((num_items, dim))
    return (np.eye(4, dim)[centre] + noise).astype(np.float32)


def fit(embedding: np.ndarray, num_levels: int = 3, num_codes: int = 16, seed: int = 0):
    return quantize(
        embedding,
        num_levels=num_levels,
        num_codes=num_codes,
        num_iterations=5,
        seed=seed,
    )


def test_no_code_of_the_first_level_passes_the_cap() -> None:
    _, codes = fit(blobs(1000))
    largest = np.bincount(codes[:, 0]).max()
    assert largest <= math.ceil(CROWDING * 1000 / 16)


def test_a_prefix_holds_no_more_items_than_there_are_codes_below() -> None:
    # 60 of 64 IDs are used, so the cap of 1.5 N / K alone would overfill prefixes.
    _, codes = fit(blobs(60), num_codes=4)
    assert np.bincount(codes[:, 0]).max() <= 16
    assert np.bincount(codes[:, 0] * 4 + codes[:, 1]).max() <= 4


def test_each_level_lowers_the_error() -> None:
    embedding = blobs(800)
    codebook, codes = fit(embedding)
    errors = [reconstruction_error(codebook, embedding, codes[:, :n]) for n in range(4)]
    assert errors[0] == pytest.approx(1.0)
    assert errors[0] > errors[1] > errors[2] > errors[3] >= 0


def test_well_separated_groups_get_a_code_each() -> None:
    # Four groups of four equal rows, and 16 / 4 = 4 centroids.
    embedding = np.repeat(np.eye(4, dtype=np.float32), 4, axis=0)
    _, codes = fit(embedding, num_levels=2, num_codes=8)
    groups = codes[:, 0].reshape(4, 4)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == 4


def test_equal_items_are_spread_over_codes_too() -> None:
    _, codes = fit(np.ones((400, 3), dtype=np.float32))
    # 1.5 * 400 / 16 = 37.5
    assert np.bincount(codes[:, 0]).max() == 38


@pytest.mark.parametrize(
    ("num_items", "num_codes", "expected"),
    # N / 4 at least, K at most, and k^3 >= N
    [(100_000, 256, 256), (100, 256, 25), (8, 2, 2), (5, 256, 2), (1, 256, 1)],
)
def test_small_catalogues_train_fewer_centroids(
    num_items: int, num_codes: int, expected: int
) -> None:
    assert num_centroids(num_items, 3, num_codes) == expected


def test_few_items_work_and_print_no_warning(capfd: pytest.CaptureFixture) -> None:
    codebook, codes = fit(blobs(5), num_codes=256)
    assert codes.shape == (5, 3)
    assert len(codebook.centroids[0]) == 2
    assert "WARNING" not in "".join(capfd.readouterr())


def test_same_seed_same_codes_other_seed_other_codes() -> None:
    embedding = blobs(500)
    first, again, other = fit(embedding), fit(embedding), fit(embedding, seed=1)
    np.testing.assert_array_equal(first[1], again[1])
    for one, two in zip(first[0].centroids, again[0].centroids, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first[1] != other[1]).any()


def test_the_input_is_not_changed_and_may_be_read_only() -> None:
    embedding = blobs(100)
    embedding.flags.writeable = False
    before = embedding.copy()
    fit(embedding)
    np.testing.assert_array_equal(embedding, before)


def test_a_value_that_is_not_finite_names_the_item() -> None:
    embedding = blobs(20)
    embedding[7, 2] = np.nan
    with pytest.raises(ValueError, match="item 7 holds NaN"):
        fit(embedding)


def test_more_items_than_codes_is_an_error() -> None:
    with pytest.raises(ValueError, match="9 items do not fit"):
        fit(blobs(9), num_codes=2)


def test_seats_go_to_those_who_lose_most_by_moving() -> None:
    choice = np.array([[0, 1], [0, 1]], dtype=np.int32)
    # Item 0 would lose 0.1 by moving, item 1 would lose 5.
    cost = np.array([[1.0, 1.1], [2.0, 7.0]], dtype=np.float32)
    assert seat_by_choice(choice, cost, seats=1, num_codes=2).tolist() == [1, 0]


def test_items_whose_choices_are_all_taken_are_marked() -> None:
    choice = np.zeros((3, 1), dtype=np.int32)
    cost = np.zeros((3, 1), dtype=np.float32)
    assert seat_by_choice(choice, cost, seats=2, num_codes=4).tolist() == [0, 0, -1]


def test_chunks_of_movers_do_not_take_one_seat_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sgrec_torchrec.item_tokens.seats.CHUNK_ROWS", 3)
    parent = np.repeat(np.arange(3), 8)
    wanted = np.zeros(24, dtype=np.int32)
    code = seat_within_parents(
        parent,
        wanted,
        np.zeros(24, dtype=np.float32),
        1,
        8,
        lambda items: np.tile(np.arange(8, dtype=np.float32), (len(items), 1)),
    )
    for group in code.reshape(3, 8):
        assert sorted(group) == list(range(8))


def test_chunks_give_the_same_codes_as_one_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedding = blobs(300)
    _, whole = fit(embedding)
    monkeypatch.setattr("sgrec_torchrec.item_tokens.quantizer.CHUNK_ROWS", 64)
    _, parts = fit(embedding)
    np.testing.assert_array_equal(whole, parts)
