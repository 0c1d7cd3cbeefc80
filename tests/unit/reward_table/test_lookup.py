"""The compiled kernels by hand, over more keys than one block holds."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sgrec_torchrec.reward_table.hash_map import slots_of
from sgrec_torchrec.reward_table.ids import Ids, texts_from_arrow
from sgrec_torchrec.reward_table.lookup import (
    BLOCK,
    SHORT_ROW,
    close_replaced,
    decode,
    find,
    find_direct,
    gather_aspects,
    search,
)
from sgrec_torchrec.reward_table.row_layout import pack_rows

FIFTH = 13107
"""A fifth of 65535: from -1 to 3 it stands for -1 + 4 / 5."""


def test_codes_are_fixed_point_between_low_and_high() -> None:
    decoded = decode(np.array([0, FIFTH, 65535], np.uint16), -1.0, 3.0)
    np.testing.assert_array_equal(decoded, np.array([-1, -0.2, 3], np.float32))
    assert decoded.dtype == np.float32


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("width", [2, 4])
def test_runs_of_equal_ids_are_found_across_blocks(is_text: bool, width: int) -> None:
    noise = np.random.default_rng(0)
    known = noise.choice(1000, 40, replace=False) * 2**40 - 2**49
    # Runs of 1 to 9 equal ids, a third of them unknown: some run spans a block's end.
    chosen = np.append(known, known[:20] + 1)[noise.integers(0, 60, 200)]
    asked = np.repeat(chosen, noise.integers(1, 10, 200))
    ends = np.arange(BLOCK, len(asked), BLOCK)
    assert (asked[ends] == asked[ends - 1]).any()
    known_ids: Ids = known
    asked_ids: Ids = asked
    if is_text:
        known_ids, asked_ids = (
            texts_from_arrow(pa.array([str(number) for number in numbers.tolist()]))
            for numbers in (known, asked)
        )
    narrow = slots_of(known_ids)
    slots = np.zeros((len(narrow), width), np.int64)
    slots[:, :2] = narrow
    stored: Any = known_ids if is_text else None
    numbers, places = find(asked_ids, slots, 2 * len(known), stored)
    number_of = {key: number for number, key in enumerate(known.tolist())}
    assert numbers.tolist() == [number_of.get(key, -1) for key in asked.tolist()]
    place_of = {int(row[1]) - 1: place for place, row in enumerate(narrow) if row[1]}
    assert places.tolist() == [place_of.get(one, -1) for one in numbers.tolist()]


def test_other_ids_are_not_taken_for_id_0() -> None:
    # Empty slots hold a key of 0, too: it is the number that tells them.
    asked = np.arange(-8, 8)
    numbers, _ = find(asked, slots_of(np.array([0])), 2, None)
    assert numbers.tolist() == [0 if one == 0 else -1 for one in asked.tolist()]


def test_numbers_without_a_map_are_those_of_a_span() -> None:
    asked = np.array([6, 7, 8, 9, 10, -7])
    assert find_direct(asked, 7, 3).tolist() == [-1, 0, 1, 2, -1, -1]


def searched(
    rows: list[list[int]], users: list[int], wanted: list[int], is_open: list[bool]
) -> tuple[Any, ...]:
    """Rewards, found, places and what stays open; the p-th pair has code p times 13107.

    User u's row is the u-th; rewards are from -1 to 3.
    """
    lengths = np.array([len(row) for row in rows])
    items = np.concatenate([np.array(row, np.uint32) for row in rows])
    codes = (np.arange(len(items)) * FIFTH % 78642).astype(np.uint16)
    words, places = pack_rows(items, codes, lengths)
    first = np.cumsum(places) - places
    slots = np.stack([first, first + 1, first, places], axis=1).reshape(-1)
    open_N, num_keys = np.array(is_open), len(users)
    answers: Any = (
        np.full(num_keys, np.nan, np.float32),
        np.zeros(num_keys, np.bool_),
        np.full(num_keys, -1),
    )
    search(
        *(np.array(users), np.array(wanted), slots, words, words.view(np.uint16)),
        *((-1.0, 3.0), open_N, answers),
    )
    return (*(answer.tolist() for answer in answers), open_N.tolist())


def test_pairs_by_hand() -> None:
    # Row 0 takes four places, since an odd number of pairs is filled up; row 1 two.
    rows = [[0, 7, 9], [7, 2**32 - 2]]
    users = [0, 0, 0, 0, 1, 1, 1, -1, 0]
    wanted = [0, 7, 9, 8, 7, 2**32 - 2, -1, 7, 0]
    is_open = [True] * 8 + [False]
    rewards, found, places, still_open = searched(rows, users, wanted, is_open)
    no = float("nan")
    fifths = [-1, -0.2, 0.6, no, 1.4, 2.2, no, no, no]
    np.testing.assert_allclose(rewards, fifths, rtol=1e-6)
    assert found == [True, True, True, False, True, True, False, False, False]
    assert places == [0, 1, 2, -1, 4, 5, -1, -1, -1]
    assert still_open == [False, False, False, True, False, False, True, True, False]


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, SHORT_ROW, 5 * SHORT_ROW + 3])
def test_every_item_of_a_row_and_none_between_is_found(extra: int) -> None:
    length = SHORT_ROW + extra
    row = [3 * nth + 1 for nth in range(length)]
    wanted = [0, *(item for one in row for item in (one, one + 1))]
    # A short row between long ones: some keys of a block are narrowed, others are not.
    rows = [[5], row, [5, 6]]
    users = [0, *[1] * len(wanted), 2, 0]
    asked = [5, *wanted, 6, 6]
    _, found, places, _ = searched(rows, users, asked, [True] * len(asked))
    at = [2, *(nth + 2 for nth in range(length))]
    hits = [[nth, -1] for nth in at[1:]]
    last = 2 + length + length % 2 + 1
    assert places == [0, -1, *(place for pair in hits for place in pair), last, -1]
    assert found == [place >= 0 for place in places]


@pytest.mark.parametrize("before", [[], [2, 2], [-1]])
def test_slot_0_may_hold_the_only_long_row_of_a_block(before: list[int]) -> None:
    # A block before it, of another long row: were this one not narrowed, it would be
    # searched where that one's items lie.
    length = SHORT_ROW + 2
    rows = [list(range(start, 2 * length, 2)) for start in (0, 1)]
    key = np.arange(BLOCK) % length
    rest = key[len(before) :]
    users = [1] * BLOCK + before + [0] * len(rest)
    wanted = [*(2 * key + 1).tolist(), *[7] * len(before), *(2 * rest).tolist()]
    _, found, places, _ = searched([*rows, [7]], users, wanted, [True] * len(users))
    ahead = [2 * length if user == 2 else -1 for user in before]
    assert places == [*(length + key).tolist(), *ahead, *rest.tolist()]
    assert found == [place >= 0 for place in places]


def test_replaced_users_are_closed_and_no_others() -> None:
    rows = np.array([0, 1, -1, 1, 0])
    for replacing, left in (
        ([False, True], [True, False, True, False, True]),
        ([True, False], [False, True, True, False, False]),
    ):
        is_open = np.array([True, True, True, False, True])
        close_replaced(rows, np.array(replacing), is_open)
        assert is_open.tolist() == left


def test_aspects_of_found_places_are_written_and_no_others() -> None:
    aspects = np.array([[0, 65535, 0], [FIFTH, 0, 65535]], np.uint16)
    places = np.tile([1, -1, 0], BLOCK)
    out = np.full((len(places), 3), np.nan, np.float32)
    gather_aspects(places, aspects, (-1.0, 3.0), out)
    no = np.nan
    expected = np.array([[-0.2, -1, 3], [no, no, no], [-1, 3, -1]], np.float32)
    np.testing.assert_array_equal(out, np.tile(expected, (BLOCK, 1)))
