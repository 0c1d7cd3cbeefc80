"""Filters and caps inside the beam against a list that is filtered afterwards."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.decoder import CodeDecoder, item_logprob
from sgrec_torchrec.generator.leaf_filter import LeafFilter
from sgrec_torchrec.generator.prefix_cap import PrefixCap
from sgrec_torchrec.generator.prior import Prior
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie

DIM = 4
NUM_CODES = 5
Sid = tuple[int, ...]
code = st.integers(0, NUM_CODES - 1)


@st.composite
def catalogues(draw: st.DrawFn) -> list[Sid]:
    num_levels = draw(st.integers(1, 3))
    sid = st.tuples(*[code] * num_levels)
    return draw(st.lists(sid, min_size=1, max_size=40, unique=True))


@st.composite
def filters(draw: st.DrawFn, num_items: int) -> tuple[bool, list[int]]:
    """(only these, items), with repetitions and entries that list nothing."""
    items = draw(st.lists(st.integers(-1, num_items - 1), max_size=60))
    return draw(st.booleans()), items


def make(sids: list[Sid], num_users: int, seed: int):
    """Decoder, trie, hidden vectors, and every item's log-probability [B, N]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = CodeDecoder(
            dim=DIM, width=6, num_levels=len(sids[0]), num_codes=NUM_CODES
        )
        with torch.no_grad():
            for head in decoder.heads:
                head.weight.mul_(6)
        hidden_BD = torch.randn(num_users, DIM) * 2
    trie = PrefixTrie.build(np.array(sids, dtype=np.int32), NUM_CODES)
    context_S = torch.arange(num_users).repeat_interleave(len(sids))
    with torch.no_grad():
        logprob_SL = item_logprob(
            *(decoder, trie, hidden_BD),
            *(context_S, torch.arange(len(sids)).repeat(num_users)),
        )
    return decoder, trie, hidden_BD, logprob_SL.sum(1).view(num_users, -1)


def flat(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    user = [row for row, items in enumerate(lists) for _ in items]
    item = [one for items in lists for one in items]
    return torch.tensor(user, dtype=torch.int64), torch.tensor(item, dtype=torch.int64)


def allowed_items(num_items: int, only: bool, items: list[int]) -> set[int]:
    listed = {item for item in items if item >= 0}
    return listed if only else set(range(num_items)) - listed


def mixed_with(logprob_BN: torch.Tensor, weight: float, seed: int):
    """A prior with some mass on a few items, and the mixture it should give."""
    num_users, num_items = logprob_BN.shape
    noise = np.random.default_rng(seed)
    item_BM = torch.full((num_users, 6), -1)
    probability_BM = torch.zeros(num_users, 6)
    mixed_BN = (1 - weight) * logprob_BN.exp()
    for user in range(num_users):
        count = int(noise.integers(0, min(6, num_items) + 1))
        picked = noise.permutation(num_items)[:count]
        share = noise.dirichlet(np.ones(count)) if count else np.zeros(0)
        item_BM[user, :count] = torch.from_numpy(picked)
        probability_BM[user, :count] = torch.from_numpy(share).float()
        mixed_BN[user, picked] += weight * torch.from_numpy(share).float()
    prior = Prior(item_BM=item_BM, probability_BM=probability_BM, weight=weight)
    return prior, mixed_BN.log()


@pytest.mark.long
@given(st.data(), catalogues(), st.integers(0, 99), st.sampled_from([0.0, 0.6]))
@settings(max_examples=150, deadline=None)
def test_filtered_beam_is_the_filtered_ranking(data, sids, seed, weight) -> None:
    num_items = len(sids)
    asked = data.draw(st.lists(filters(num_items), min_size=1, max_size=3))
    decoder, trie, hidden_BD, logprob_BN = make(sids, len(asked), seed)
    prior, score_BN = mixed_with(logprob_BN, weight, seed)
    user_F, item_F = flat([items for _, items in asked])
    only_B = torch.tensor([only for only, _ in asked])
    leaves = LeafFilter.build(trie, user_F, item_F, only_B)
    wide, narrow = (
        beam_search(
            *(decoder, trie, hidden_BD, width),
            prior=prior if weight else None,
            allowed=leaves,
        )
        for width in (num_items, 2)
    )
    for user, (only, items) in enumerate(asked):
        allowed = sorted(allowed_items(num_items, only, items))
        found = [item for item in wide.item_BG[user].tolist() if item >= 0]
        assert sorted(found) == allowed
        best = score_BN[user, allowed].sort(descending=True).values
        torch.testing.assert_close(wide.key_BG[user, : len(allowed)], best)
        torch.testing.assert_close(
            wide.logprob_BG[user, : len(found)], logprob_BN[user, found]
        )
        few = narrow.item_BG[user].tolist()
        assert set(few) - {-1} <= set(allowed)
        # No beam died on the way: as many items as there are.
        assert sum(item >= 0 for item in few) == min(2, len(allowed))


@pytest.mark.long
@given(st.data(), catalogues(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_capped_beam_is_the_capped_ranking(data, sids, seed) -> None:
    num_levels, num_items = len(sids[0]), len(sids)
    num_users = 2
    decoder, trie, hidden_BD, logprob_BN = make(sids, num_users, seed)
    lengths = data.draw(
        st.lists(st.integers(1, num_levels + 1), min_size=2, max_size=2)
    )
    counts = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
    only, items = data.draw(filters(num_items))
    cap = PrefixCap(length_B=torch.tensor(lengths), count_B=torch.tensor(counts))
    user_F, item_F = flat([items, items])
    leaves = LeafFilter.build(trie, user_F, item_F, torch.tensor([only, only]))
    for width in (num_items, 3):
        rollout = beam_search(decoder, trie, hidden_BD, width, allowed=leaves, cap=cap)
        for user in range(num_users):
            expected: list[int] = []
            taken: dict[Sid, int] = {}
            for item in logprob_BN[user].argsort(descending=True).tolist():
                prefix = sids[item][: lengths[user]]
                if lengths[user] > num_levels:
                    prefix = (*prefix, item)
                is_in = item in allowed_items(num_items, only, items)
                if is_in and taken.get(prefix, 0) < counts[user]:
                    taken[prefix] = taken.get(prefix, 0) + 1
                    expected.append(item)
            found = [item for item in rollout.item_BG[user].tolist() if item >= 0]
            assert len(found) == min(width, len(expected))
            prefixes = [sids[item][: lengths[user]] for item in found]
            if lengths[user] <= num_levels:
                assert max(map(prefixes.count, prefixes), default=0) <= counts[user]
            if width == num_items:
                want = logprob_BN[user, expected]
                torch.testing.assert_close(logprob_BN[user, found], want)
            scores = rollout.key_BG[user, : len(found)]
            assert (scores.diff() <= 0).all()


def test_a_whole_family_that_was_seen_takes_no_beam() -> None:
    # Code 0 leads to the likeliest three items; all are seen. A beam of one must still
    # find the best of the others.
    sids = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 4)]
    decoder, trie, hidden_BD, _logprob_BN = make(sids, 1, 0)
    with torch.no_grad():
        decoder.heads[0].bias[0] += 50
    seen_BH = torch.tensor([[2, 0, -1, 1, 0]])
    rollout = beam_search(decoder, trie, hidden_BD, 1, seen_BH)
    assert rollout.item_BG.item() in (3, 4)
    assert rollout.logprob_BG.isfinite().all()


@pytest.mark.parametrize("only", [True, False])
def test_an_empty_list_allows_nothing_or_everything(only: bool) -> None:
    sids = [(0, 0), (0, 1), (4, 4)]
    decoder, trie, hidden_BD, _ = make(sids, 1, 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    leaves = LeafFilter.build(trie, nothing, nothing, torch.tensor([only]))
    rollout = beam_search(decoder, trie, hidden_BD, 3, allowed=leaves)
    assert (rollout.item_BG >= 0).sum() == (0 if only else 3)
    assert math.isinf(rollout.key_BG[0, 0].item()) is only
