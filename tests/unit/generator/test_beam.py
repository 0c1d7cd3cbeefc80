"""Beam search and sampling against an exhaustive reference over small catalogues."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sgrec_torchrec.generator.beam import beam_search, sample_distinct
from sgrec_torchrec.generator.decoder import CodeDecoder, item_logprob
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import Rollout

DIM = 6
Sid = tuple[int, ...]

TRIES: dict[str, tuple[list[Sid], int]] = {
    "one item": ([(3, 0, 7)], 8),
    "single child": ([(5, 5, k) for k in range(9)], 9),
    "single child below a fan": ([(k, 2, 2) for k in range(11)], 13),
    "unequal sizes": (
        [(0, 0, k) for k in range(17)] + [(16, 16, 16), (3, 0, 1), (3, 9, 1)],
        17,
    ),
    "full": (list(itertools.product(range(4), repeat=3)), 4),
    "two levels": ([(a, b) for a in range(10) for b in range(a + 1)], 10),
    "two by two": ([(0, 0), (0, 1), (1, 0), (1, 1)], 2),
    "branches": ([(0, 0), (0, 1), (1, 1), (2, 0)], 3),
    "one level": ([(k,) for k in (0, 3, 4, 8)], 9),
}


def make(
    name: str, num_users: int, spread: float = 4.0
) -> tuple[CodeDecoder, PrefixTrie, Tensor, Tensor]:
    """Decoder, trie, hidden vectors [B, D] and the slow log-probabilities [B, N]."""
    sids, num_codes = TRIES[name]
    torch.manual_seed(0)
    decoder = CodeDecoder(
        dim=DIM, width=10, num_levels=len(sids[0]), num_codes=num_codes
    )
    with torch.no_grad():
        for head in decoder.heads:
            head.weight.mul_(spread)
    hidden_BD = torch.randn(num_users, DIM) * 2
    trie = PrefixTrie.build(np.array(sids, dtype=np.int32), num_codes)
    return decoder, trie, hidden_BD, exhaustive(decoder, sids, hidden_BD)


@torch.no_grad()
def exhaustive(
    decoder: CodeDecoder,
    sids: list[Sid],
    hidden_BD: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """[B, N] log-probabilities, prefix by prefix from the list of SIDs."""
    logprob_BN = torch.zeros(len(hidden_BD), len(sids), dtype=torch.float64)
    for level in range(len(sids[0])):
        part_BM = decoder.user_part(level, hidden_BD)
        for prefix in {sid[:level] for sid in sids}:
            codes = torch.tensor(prefix, dtype=torch.int64)
            rows = decoder.logits(level, part_BM, codes.expand(len(part_BM), -1))
            rows = rows.double() / temperature
            legal = sorted({sid[level] for sid in sids if sid[:level] == prefix})
            normed = rows[:, legal].log_softmax(-1)
            for item, sid in enumerate(sids):
                if sid[:level] == prefix:
                    logprob_BN[:, item] += normed[:, legal.index(sid[level])]
    return logprob_BN


def check_is_sound(rollout: Rollout, sids: list[Sid], num_expected: int) -> None:
    """Legal, distinct items with their own codes, then only empty slots."""
    for user in range(len(rollout.item_BG)):
        items = rollout.item_BG[user].tolist()
        real, empty = items[:num_expected], items[num_expected:]
        assert len(set(real)) == num_expected
        assert min(real, default=0) >= 0
        assert set(empty) <= {-1}
        codes = rollout.codes_BGL[user].tolist()
        assert codes[:num_expected] == [list(sids[item]) for item in real]
        assert all(set(row) == {-1} for row in codes[num_expected:])
        for name in ("logprob_BG", "logprob_sampling_BG", "key_BG"):
            row = getattr(rollout, name)[user]
            assert row[:num_expected].isfinite().all(), name
            assert torch.isneginf(row[num_expected:]).all(), name


@pytest.mark.parametrize("name", TRIES)
@pytest.mark.parametrize("extra", [0, 7])
def test_wide_beam_equals_the_exhaustive_ranking(name: str, extra: int) -> None:
    decoder, trie, hidden_BD, slow_BN = make(name, 5)
    rollout = beam_search(decoder, trie, hidden_BD, trie.num_items + extra)
    check_is_sound(rollout, TRIES[name][0], trie.num_items)
    expected = slow_BN.sort(descending=True)
    ours_BN = rollout.logprob_BG[:, : trie.num_items].double()
    torch.testing.assert_close(ours_BN, expected.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(rollout.item_BG[:, : trie.num_items], expected.indices)


@pytest.mark.parametrize("name", TRIES)
@pytest.mark.parametrize("width", [1, 3, 6])
def test_narrow_beam_is_legal_distinct_sorted_and_scored_right(
    name: str, width: int
) -> None:
    decoder, trie, hidden_BD, slow_BN = make(name, 6)
    rollout = beam_search(decoder, trie, hidden_BD, width)
    assert rollout.item_BG.shape == (6, width)
    found = int((rollout.item_BG[0] >= 0).sum())
    assert found >= 1
    check_is_sound(rollout, TRIES[name][0], found)
    scores = rollout.logprob_BG[:, :found]
    assert (scores.diff(dim=1) <= 0).all()
    slow = slow_BN.gather(1, rollout.item_BG[:, :found])
    torch.testing.assert_close(scores.double(), slow, rtol=1e-5, atol=1e-5)
    assert torch.equal(rollout.key_BG, rollout.logprob_BG)


def test_beam_keeps_the_best_prefixes_of_each_level() -> None:
    # A width of 3 on the full trie of 64: by hand, level after level.
    decoder, trie, hidden_BD, slow_BN = make("full", 8)
    sids = TRIES["full"][0]
    rollout = beam_search(decoder, trie, hidden_BD, 3)
    for user in range(8):
        kept: list[Sid] = [()]
        for level in range(3):
            mass: dict[Sid, float] = {}
            for item, sid in enumerate(sids):
                if sid[:level] in kept:
                    key = sid[: level + 1]
                    mass[key] = mass.get(key, 0.0) + math.exp(slow_BN[user, item])
            kept = sorted(mass, key=lambda key: -mass[key])[:3]
        assert [tuple(row) for row in rollout.codes_BGL[user].tolist()] == kept


@pytest.mark.parametrize("name", TRIES)
def test_seen_items_are_left_out_and_nothing_else(name: str) -> None:
    decoder, trie, hidden_BD, slow_BN = make(name, 4)
    num_items = trie.num_items
    generator = torch.Generator().manual_seed(0)
    seen_BH = torch.randint(-1, num_items, (4, 6), generator=generator)
    seen_BH[0] = -1
    rollout = beam_search(decoder, trie, hidden_BD, num_items, seen_BH)
    plain = beam_search(decoder, trie, hidden_BD, num_items)
    for user in range(4):
        seen = set(seen_BH[user].tolist())
        expected = [item for item in plain.item_BG[user].tolist() if item not in seen]
        expected += [-1] * (num_items - len(expected))
        assert rollout.item_BG[user].tolist() == expected
    # What is left keeps its probability: leaving out does not renormalise.
    slow_BG = slow_BN.gather(1, rollout.item_BG.clamp(min=0)).float()
    slow_BG[rollout.item_BG < 0] = -math.inf
    torch.testing.assert_close(rollout.logprob_BG, slow_BG, rtol=1e-5, atol=1e-5)


def test_a_user_who_has_seen_everything_gets_nothing() -> None:
    decoder, trie, hidden_BD, _ = make("two levels", 2)
    seen_BH = torch.arange(trie.num_items).repeat(2, 1)
    rollout = beam_search(decoder, trie, hidden_BD, 5, seen_BH)
    check_is_sound(rollout, TRIES["two levels"][0], 0)


def test_beam_is_deterministic_and_blind_to_the_batch() -> None:
    decoder, trie, hidden_BD, _ = make("unequal sizes", 6)
    first = beam_search(decoder, trie, hidden_BD, 5)
    torch.manual_seed(1)
    again = beam_search(decoder, trie, hidden_BD, 5)
    alone = beam_search(decoder, trie, hidden_BD[4:5], 5)
    assert torch.equal(first.item_BG, again.item_BG)
    assert torch.equal(first.logprob_BG, again.logprob_BG)
    assert torch.equal(first.item_BG[4:5], alone.item_BG)
    torch.testing.assert_close(first.logprob_BG[4:5], alone.logprob_BG)


def user_keys(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-(2**62), 2**62, (count,), generator=generator)


@pytest.mark.parametrize("name", TRIES)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_are_sound_and_scored_at_both_temperatures(
    name: str, temperature: float
) -> None:
    decoder, trie, hidden_BD, slow_BN = make(name, 8)
    sids = TRIES[name][0]
    rollout = sample_distinct(decoder, trie, hidden_BD, 6, user_keys(8), temperature)
    num_expected = min(6, trie.num_items)
    check_is_sound(rollout, sids, num_expected)
    key_BG = rollout.key_BG[:, :num_expected]
    assert (key_BG.diff(dim=1) <= 0).all()
    item_BG = rollout.item_BG[:, :num_expected]
    tempered_BN = exhaustive(decoder, sids, hidden_BD, temperature)
    for ours, slow in (
        (rollout.logprob_BG, slow_BN),
        (rollout.logprob_sampling_BG, tempered_BN),
    ):
        torch.testing.assert_close(
            ours[:, :num_expected].double(),
            slow.gather(1, item_BG),
            rtol=1e-5,
            atol=1e-5,
        )
    context_S = torch.arange(8).repeat_interleave(num_expected)
    logprob_SL = item_logprob(decoder, trie, hidden_BD, context_S, item_BG.flatten())
    torch.testing.assert_close(
        logprob_SL.sum(1).view_as(item_BG), rollout.logprob_BG[:, :num_expected]
    )


@pytest.mark.parametrize(
    ("name", "temperature", "spread"),
    # In "branches" the draw of a branch must fit the draws inside it; in "two by two"
    # the draws of two branches must be independent.
    [
        ("branches", 1.0, 1.5),
        ("two by two", 1.0, 1.0),
        ("single child", 1.0, 1.0),
        ("one level", 1.0, 2.0),
        ("one level", 2.0, 4.0),
    ],
)
def test_ordered_samples_follow_plackett_luce(
    name: str, temperature: float, spread: float
) -> None:
    """P(a then b) = p_a * p_b / (1 - p_a): sampling without replacement."""
    num_draws, sids = 40_000, TRIES[name][0]
    decoder, trie, hidden_BD, _ = make(name, 1, spread)
    share_N = exhaustive(decoder, sids, hidden_BD, temperature)[0].exp()
    hidden = hidden_BD.expand(num_draws, -1)
    for key_B in (user_keys(num_draws), torch.arange(num_draws)):
        rollout = sample_distinct(decoder, trie, hidden, 2, key_B, temperature)
        observed, expected = [], []
        pairs = rollout.item_BG[:, 0] * len(sids) + rollout.item_BG[:, 1]
        counts = torch.bincount(pairs, minlength=len(sids) ** 2)
        for first, second in itertools.permutations(range(len(sids)), 2):
            share = share_N[first] * share_N[second] / (1 - share_N[first])
            expected.append(float(share) * num_draws)
            observed.append(int(counts[first * len(sids) + second]))
        assert sum(observed) == num_draws
        assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_a_user_key_gives_one_draw_whatever_the_batch() -> None:
    decoder, trie, hidden_BD, _ = make("unequal sizes", 6)
    key_B = user_keys(6)
    whole = sample_distinct(decoder, trie, hidden_BD, 4, key_B, 1.5)
    rows = torch.tensor([5, 2])
    part = sample_distinct(decoder, trie, hidden_BD[rows], 4, key_B[rows], 1.5)
    assert torch.equal(part.item_BG, whole.item_BG[rows])
    torch.testing.assert_close(part.key_BG, whole.key_BG[rows])
    other = sample_distinct(decoder, trie, hidden_BD, 4, key_B + 1, 1.5)
    assert not torch.equal(other.item_BG, whole.item_BG)


def test_one_user_may_ask_and_no_rollout_carries_a_gradient() -> None:
    decoder, trie, hidden_BD, _ = make("full", 3)
    key_B, one = user_keys(3), slice(1, 2)
    many = sample_distinct(decoder, trie, hidden_BD, 4, key_B, 1.0)
    alone = sample_distinct(decoder, trie, hidden_BD[one], 4, key_B[one])
    assert torch.equal(alone.item_BG, many.item_BG[one])
    torch.testing.assert_close(alone.key_BG, many.key_BG[one])
    for rollout in (alone, beam_search(decoder, trie, hidden_BD, 2)):
        assert not rollout.logprob_BG.requires_grad
        assert not rollout.key_BG.requires_grad


def test_the_first_sample_of_many_is_the_only_sample_of_one() -> None:
    # The same noise ranks the whole catalogue: G only cuts the list.
    decoder, trie, hidden_BD, _ = make("full", 50)
    many = sample_distinct(decoder, trie, hidden_BD, 20, user_keys(50))
    few = sample_distinct(decoder, trie, hidden_BD, 3, user_keys(50))
    assert torch.equal(few.item_BG, many.item_BG[:, :3])
    torch.testing.assert_close(few.key_BG, many.key_BG[:, :3])


def random_seen(num_items: int, num_users: int, width: int) -> Tensor:
    """Padded with -1; the first user has seen nothing."""
    generator = torch.Generator().manual_seed(0)
    seen_BH = torch.randint(-1, num_items, (num_users, width), generator=generator)
    seen_BH[0] = -1
    return seen_BH


@pytest.mark.parametrize("name", TRIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_seen_items_are_not_drawn_and_the_rest_is_drawn_as_before(
    name: str, temperature: float
) -> None:
    # G is the whole catalogue: all of it is ranked by the same noise, less the seen.
    decoder, trie, hidden_BD, slow_BN = make(name, 8)
    seen_BH = random_seen(trie.num_items, 8, 5)
    asked = (decoder, trie, hidden_BD, trie.num_items, user_keys(8), temperature)
    plain, rollout = sample_distinct(*asked), sample_distinct(*asked, seen_BH)
    for user in range(8):
        seen = set(seen_BH[user].tolist())
        left = [item for item in plain.item_BG[user].tolist() if item not in seen]
        assert rollout.item_BG[user].tolist() == left + [-1] * (
            trie.num_items - len(left)
        )
    is_real_BG = rollout.item_BG >= 0
    codes_BGL = trie.codes_NL[rollout.item_BG].long()
    codes_BGL[~is_real_BG] = -1
    assert torch.equal(rollout.codes_BGL, codes_BGL)
    # Leaving out does not renormalise.
    slow_BG = slow_BN.gather(1, rollout.item_BG.clamp(min=0)).float()
    slow_BG[~is_real_BG] = -math.inf
    torch.testing.assert_close(rollout.logprob_BG, slow_BG, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TRIES)
def test_few_draws_beside_many_seen_items_are_legal_distinct_and_full(
    name: str,
) -> None:
    decoder, trie, hidden_BD, slow_BN = make(name, 8)
    seen_BH = random_seen(trie.num_items, 8, 40)
    rollout = sample_distinct(decoder, trie, hidden_BD, 3, user_keys(8), 1.0, seen_BH)
    assert rollout.item_BG.shape == (8, 3)
    for user in range(8):
        items = rollout.item_BG[user].tolist()
        real = [item for item in items if item >= 0]
        num_left = trie.num_items - len(set(seen_BH[user].tolist()) - {-1})
        assert items == real + [-1] * (3 - min(3, num_left))
        assert len(set(real)) == len(real)
        assert not set(real) & set(seen_BH[user].tolist())
        assert max(real, default=0) < trie.num_items
        slow = slow_BN[user, real].float()
        torch.testing.assert_close(rollout.logprob_BG[user, : len(real)], slow)


@pytest.mark.parametrize("name", ["full", "unequal sizes"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_those_who_have_seen_nothing_draw_the_items_that_nobody_filtered(
    name: str, temperature: float
) -> None:
    decoder, trie, hidden_BD, _ = make(name, 8)
    # In float64: where a child's noise is all but its group's largest, a key loses most
    # of its digits.
    asked = (decoder.double(), trie, hidden_BD.double(), 5, user_keys(8), temperature)
    plain = sample_distinct(*asked)
    for seen_BH in (torch.full((8, 3), -1), torch.zeros(8, 0, dtype=torch.int64)):
        rollout = sample_distinct(*asked, seen_BH)
        assert torch.equal(rollout.item_BG, plain.item_BG)
        assert torch.equal(rollout.codes_BGL, plain.codes_BGL)
        # More beams are asked at once, so that sums may round otherwise.
        torch.testing.assert_close(rollout.logprob_BG, plain.logprob_BG)
        torch.testing.assert_close(
            rollout.logprob_sampling_BG, plain.logprob_sampling_BG
        )
        torch.testing.assert_close(rollout.key_BG, plain.key_BG)


@pytest.mark.parametrize(
    ("name", "seen", "temperature", "spread"),
    [
        ("branches", [3], 1.0, 1.5),
        ("branches", [0], 1.0, 1.5),
        ("two by two", [1, 2], 1.0, 1.0),
        ("single child", [0, 4, 5], 2.0, 4.0),
    ],
)
def test_unseen_items_follow_plackett_luce(
    name: str, seen: list[int], temperature: float, spread: float
) -> None:
    """P(a then b) = q_a q_b / (1 - q_a), q the shares of what has not been seen.

    Gumbel-top-k of the whole catalogue without the seen items: their noise is nobody
    else's, so the others race as if they were alone.
    """
    num_draws, num_items = 40_000, len(TRIES[name][0])
    decoder, trie, hidden_BD, _ = make(name, 1, spread)
    share_N = exhaustive(decoder, TRIES[name][0], hidden_BD, temperature)[0].exp()
    share_N[seen] = 0.0
    share_N /= share_N.sum()
    rollout = sample_distinct(
        decoder,
        trie,
        hidden_BD.expand(num_draws, -1),
        2,
        user_keys(num_draws),
        temperature,
        torch.tensor(seen).expand(num_draws, -1),
    )
    pairs = rollout.item_BG[:, 0] * num_items + rollout.item_BG[:, 1]
    counts = torch.bincount(pairs, minlength=num_items**2)
    unseen = [item for item in range(num_items) if item not in seen]
    observed, expected = [], []
    for first, second in itertools.permutations(unseen, 2):
        share = share_N[first] * share_N[second] / (1 - share_N[first])
        expected.append(float(share) * num_draws)
        observed.append(int(counts[first * num_items + second]))
    assert sum(observed) == num_draws
    assert stats.chisquare(observed, expected).pvalue > 1e-3
