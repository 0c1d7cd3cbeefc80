"""A sparse prior mixed into the beam against a mixture over the whole catalogue."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.decoder import CodeDecoder, item_logprob
from sgrec_torchrec.generator.prior import Prior, PriorWalk
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie

NUM_USERS = 4
NUM_CODES = 5
DIM = 6
# 33 items of unequal families below 5 first codes.
SIDS = [sid for sid in itertools.product(range(5), repeat=3) if sum(sid) % 4 == 1]
NUM_ITEMS = len(SIDS)


@pytest.fixture(scope="module")
def trie() -> PrefixTrie:
    return PrefixTrie.build(np.array(SIDS, dtype=np.int32), NUM_CODES)


@pytest.fixture(scope="module")
def decoder() -> CodeDecoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = CodeDecoder(dim=DIM, width=8, num_levels=3, num_codes=NUM_CODES)
        with torch.no_grad():
            for head in made.heads:
                head.weight.mul_(4)
    return made


@pytest.fixture(scope="module")
def hidden_BD() -> Tensor:
    return torch.randn(NUM_USERS, DIM, generator=torch.Generator().manual_seed(2)) * 2


@pytest.fixture(scope="module")
def network_BN(decoder: CodeDecoder, trie: PrefixTrie, hidden_BD: Tensor) -> Tensor:
    """float64 [B, N]: probability of every item, asked one by one."""
    context_S = torch.arange(NUM_USERS).repeat_interleave(NUM_ITEMS)
    item_S = torch.arange(NUM_ITEMS).repeat(NUM_USERS)
    with torch.no_grad():
        logprob_SL = item_logprob(decoder, trie, hidden_BD, context_S, item_S)
    return logprob_SL.double().sum(1).exp().view(NUM_USERS, NUM_ITEMS)


def make_prior(weight: float) -> Prior:
    """User b has 3 + 2 b candidates, then padding that carries a misleading mass."""
    noise = np.random.default_rng(3)
    item_BM = torch.full((NUM_USERS, 12), -1)
    probability_BM = torch.full((NUM_USERS, 12), 0.5)
    for user in range(NUM_USERS):
        count = 3 + 2 * user
        chosen = noise.choice(NUM_ITEMS, count, replace=False)
        item_BM[user, :count] = torch.from_numpy(chosen)
        # They sum to 0.9: what was cut off is nobody's.
        share = noise.dirichlet(np.full(count, 0.5)) * 0.9
        probability_BM[user, :count] = torch.from_numpy(share).float()
    return Prior(item_BM=item_BM, probability_BM=probability_BM, weight=weight)


def mixture(network_BN: Tensor, prior: Prior) -> Tensor:
    """float64 [B, N]: (1 - w) network + w prior, candidate by candidate."""
    mixed_BN = (1 - prior.weight) * network_BN
    for user in range(NUM_USERS):
        pairs = zip(prior.item_BM[user], prior.probability_BM[user], strict=True)
        for item, share in pairs:
            if item >= 0:
                mixed_BN[user, item] += prior.weight * share.double()
    return mixed_BN


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.95])
def test_wide_beam_equals_the_exhaustive_mixture(
    decoder, trie, hidden_BD, network_BN, weight
) -> None:
    prior = make_prior(weight)
    rollout = beam_search(decoder, trie, hidden_BD, NUM_ITEMS + 3, prior=prior)
    expected = mixture(network_BN, prior).log().sort(descending=True)
    assert torch.equal(rollout.item_BG[:, :NUM_ITEMS], expected.indices)
    ours_BN = rollout.key_BG[:, :NUM_ITEMS].double()
    torch.testing.assert_close(ours_BN, expected.values, rtol=1e-5, atol=1e-5)
    assert (rollout.item_BG[:, NUM_ITEMS:] == -1).all()
    assert torch.isneginf(rollout.key_BG[:, NUM_ITEMS:]).all()


def test_logprob_stays_the_networks_own(decoder, trie, hidden_BD, network_BN) -> None:
    prior = make_prior(0.6)
    rollout = beam_search(decoder, trie, hidden_BD, NUM_ITEMS, prior=prior)
    own_BN = network_BN.log().gather(1, rollout.item_BG)
    torch.testing.assert_close(
        rollout.logprob_BG.double(), own_BN, rtol=1e-5, atol=1e-5
    )


def test_seen_items_are_left_out_without_renormalising(
    decoder, trie, hidden_BD, network_BN
) -> None:
    prior = make_prior(0.6)
    heaviest_B1 = prior.item_BM[:, :1]
    padding_B1 = torch.full((NUM_USERS, 1), -1)
    seen_BH = torch.cat([heaviest_B1, padding_B1, (heaviest_B1 + 1) % NUM_ITEMS], 1)
    rollout = beam_search(decoder, trie, hidden_BD, NUM_ITEMS, seen_BH, prior)
    mixed_BN = mixture(network_BN, prior).log()
    for user in range(NUM_USERS):
        for item in {int(one) for one in seen_BH[user] if one >= 0}:
            mixed_BN[user, item] = -math.inf
    expected = mixed_BN.sort(descending=True)
    left = NUM_ITEMS - 2
    assert torch.equal(rollout.item_BG[:, :left], expected.indices[:, :left])
    assert (rollout.item_BG[:, left:] == -1).all()
    torch.testing.assert_close(
        rollout.key_BG.double(), expected.values, rtol=1e-5, atol=1e-5
    )


def test_narrow_beam_keeps_the_best_prefixes_of_the_mixture(
    decoder, trie, hidden_BD, network_BN
) -> None:
    prior = make_prior(0.5)
    mixed_BN = mixture(network_BN, prior)
    rollout = beam_search(decoder, trie, hidden_BD, 3, prior=prior)
    for user in range(NUM_USERS):
        kept: list[tuple[int, ...]] = [()]
        for level in range(3):
            mass: dict[tuple[int, ...], float] = {}
            for item, sid in enumerate(SIDS):
                if sid[:level] in kept:
                    key = sid[: level + 1]
                    mass[key] = mass.get(key, 0.0) + float(mixed_BN[user, item])
            kept = sorted(mass, key=lambda key: -mass[key])[:3]
        assert [tuple(row) for row in rollout.codes_BGL[user].tolist()] == kept


def test_weight_zero_changes_no_bit(decoder, trie, hidden_BD) -> None:
    plain = beam_search(decoder, trie, hidden_BD, 10)
    mixed = beam_search(decoder, trie, hidden_BD, 10, prior=make_prior(0.0))
    assert torch.equal(mixed.item_BG, plain.item_BG)
    assert torch.equal(mixed.key_BG, plain.key_BG)


def test_a_user_without_candidates_gets_the_networks_order(
    decoder, trie, hidden_BD
) -> None:
    nobody = Prior(
        item_BM=torch.full((NUM_USERS, 1), -1),
        probability_BM=torch.zeros(NUM_USERS, 1),
        weight=0.4,
    )
    plain = beam_search(decoder, trie, hidden_BD, 10)
    mixed = beam_search(decoder, trie, hidden_BD, 10, prior=nobody)
    assert torch.equal(mixed.item_BG, plain.item_BG)
    # Its share of the mixture is nobody's: all scores fall by log(1 - w).
    torch.testing.assert_close(
        mixed.key_BG, plain.key_BG + math.log(0.6), rtol=0, atol=1e-6
    )


def test_same_input_gives_the_same_bits(decoder, trie, hidden_BD) -> None:
    first, second = (
        beam_search(decoder, trie, hidden_BD, 7, prior=make_prior(0.5))
        for _ in range(2)
    )
    assert torch.equal(first.item_BG, second.item_BG)
    assert torch.equal(first.key_BG, second.key_BG)


def test_candidates_of_a_dropped_prefix_lose_their_mass(trie) -> None:
    # Item 0 is below first code SIDS[0][0]; the beam goes on with another one.
    prior = Prior(
        item_BM=torch.tensor([[0]]), probability_BM=torch.ones(1, 1), weight=0.5
    )
    walk = PriorWalk(prior, trie)
    other = (SIDS[0][0] + 1) % NUM_CODES
    walk.advance(0, torch.tensor([[other]]), NUM_CODES)
    logprob_BWK = torch.full((1, 1, NUM_CODES), -1.0)
    mixed_BWK = walk.mix(1, logprob_BWK)
    torch.testing.assert_close(
        mixed_BWK, logprob_BWK + math.log(0.5), rtol=0, atol=1e-6
    )
