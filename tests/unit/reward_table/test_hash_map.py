"""Ids to numbers and back, with collisions that are made on purpose."""

from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.reward_table import RewardTable, build_reward_table
from sgrec_torchrec.reward_table.hash_map import (
    Numbering,
    hash_ids,
    slots_of,
    sorted_ids,
)
from sgrec_torchrec.reward_table.ids import Ids, Texts, texts_from_arrow
from sgrec_torchrec.reward_table.lookup import find, find_direct

MASK = 2**64 - 1


def slow_mix(number: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    h = number & MASK
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)


def slow_text_hash(text: bytes) -> int:
    h = slow_mix(len(text))
    whole = len(text) // 8 * 8
    for at in range(0, whole, 8):
        h = slow_mix(h ^ int.from_bytes(text[at : at + 8], "little"))
    return slow_mix(h ^ int.from_bytes(text[whole:], "little"))


def colliding_pair() -> tuple[str, str]:
    """Two ASCII strings of one hash.

    The second word is free: it takes back what another first word changed. Whether it
    is ASCII then is a matter of luck, one time in 256.
    """
    first = b"aaaaaaaa"
    state = slow_mix(slow_mix(16) ^ int.from_bytes(first, "little"))
    for nth in count():
        other = b"%08d" % nth
        change = state ^ slow_mix(slow_mix(16) ^ int.from_bytes(other, "little"))
        second = int.from_bytes(b"zzzzzzzz", "little")
        answer = (second ^ change).to_bytes(8, "little")
        if answer.isascii():
            return (first + b"zzzzzzzz").decode(), (other + answer).decode()
    raise AssertionError


def test_hashes_are_those_of_the_formula() -> None:
    numbers = [0, 1, -1, 2**63 - 1, -(2**63)]
    assert hash_ids(np.array(numbers)).tolist() == [slow_mix(n) for n in numbers]
    texts = ["", "a", "12345678", "123456789", "\u00fc" * 9]
    wanted = [slow_text_hash(text.encode()) for text in texts]
    assert hash_ids(texts_from_arrow(pa.array(texts))).tolist() == wanted


@pytest.mark.parametrize("size", [1, 5, 5000])
@pytest.mark.parametrize("is_text", [False, True])
def test_a_map_finds_its_keys_and_no_others(size: int, is_text: bool) -> None:
    noise = np.random.default_rng(size)
    numbers = noise.choice(10**6, 2 * size, replace=False) * 2**40
    ids: Ids = numbers
    if is_text:
        ids = texts_from_arrow(pa.array([f"id {number}" for number in numbers]))
    known = ids.part(0, size) if isinstance(ids, Texts) else ids[:size]
    slots = slots_of(known)
    assert slots[-1, 1] == 0
    stored = known if isinstance(known, Texts) else None
    numbers, places = find(ids, slots, 2 * size, stored)
    assert numbers.tolist() == [*range(size), *[-1] * size]
    assert (slots[places[:size], 1] == np.arange(size) + 1).all()
    assert (places[size:] == -1).all()


@pytest.mark.parametrize("is_text", [False, True])
def test_numbers_follow_first_appearance(is_text: bool) -> None:
    noise = np.random.default_rng(0)
    numbers = noise.integers(0, 20_000, 50_000)
    wanted: dict[int, int] = {}
    numbering = Numbering(is_text=is_text)
    for part in np.array_split(numbers, 7):
        ids: Ids = part
        if is_text:
            ids = texts_from_arrow(pa.array([str(number) for number in part]))
        got = numbering.number(ids)
        assert got.tolist() == [
            wanted.setdefault(one, len(wanted)) for one in part.tolist()
        ]
    kept = numbering.ids()
    back = kept.to_arrow().to_pylist() if isinstance(kept, Texts) else kept.tolist()
    assert [int(one) for one in back] == list(wanted)
    assert (numbering.hashes() == hash_ids(kept)).all()


def test_integer_ids_are_sorted_and_texts_are_not() -> None:
    numbering = Numbering(is_text=False)
    numbering.number(np.array([5, -7, 5, 2**40]))
    ids, places = sorted_ids(numbering)
    assert ids.tolist() == [-7, 5, 2**40]
    assert places.tolist() == [1, 0, 2]
    numbering = Numbering(is_text=True)
    numbering.number(texts_from_arrow(pa.array(["b", "a"])))
    texts, places = sorted_ids(numbering)
    assert texts.to_arrow().to_pylist() == ["b", "a"]
    assert places.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("base", "ids", "wanted"),
    [
        (0, [0, 9, 10, -1, 2**63 - 1, -(2**63)], [0, 9, -1, -1, -1, -1]),
        (-(2**63), [-(2**63), -(2**63) + 9, 0, 2**63 - 1], [0, 9, -1, -1]),
        (2**63 - 10, [2**63 - 1, 2**63 - 11, -(2**63)], [9, -1, -1]),
    ],
)
def test_direct_numbers_do_not_wrap(base: int, ids: list[int], wanted) -> None:
    assert find_direct(np.array(ids), base, 10).tolist() == wanted


def test_a_long_text_makes_room_for_itself() -> None:
    numbering = Numbering(is_text=True)
    texts = ["x" * 100_000, "y" * 300_000, "x" * 100_000]
    assert numbering.number(texts_from_arrow(pa.array(texts))).tolist() == [0, 1, 0]


def test_texts_of_one_hash_keep_apart(tmp_path) -> None:
    one, two = colliding_pair()
    assert one != two
    assert slow_text_hash(one.encode()) == slow_text_hash(two.encode())
    rows = {"user_id": [one, two, one], "item_id": [one, one, two]}
    pq.write_table(pa.table({**rows, "reward": [0.25, 0.5, 0.75]}), tmp_path / "a")
    report = build_reward_table(tmp_path / "a", tmp_path / "table")
    assert (report.num_users, report.num_items) == (2, 2)
    table = RewardTable.open(tmp_path / "table")
    rewards, found = table.lookup([one, two, one, two], [one, one, two, two])
    assert found.tolist() == [True, True, True, False]
    np.testing.assert_allclose(rewards[:3], [0.25, 0.5, 0.75], atol=1e-5)


def test_a_text_that_only_shares_a_hash_is_missing(tmp_path) -> None:
    one, two = colliding_pair()
    rows = {"user_id": [one], "item_id": [one], "reward": [0.25]}
    pq.write_table(pa.table(rows), tmp_path / "a")
    build_reward_table(tmp_path / "a", tmp_path / "table")
    table = RewardTable.open(tmp_path / "table")
    _, found = table.lookup([one, two, one], [one, one, two])
    assert found.tolist() == [True, False, False]
