"""TRL's trainer, set up as a benchmark's peer, learns what our update learns."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None,
    reason="TRL is not installed: benchmarks/bench_a2po.py says how",
)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NUM_PROMPTS, NUM_ROLLOUTS, NUM_LEVELS = 3, 4, 3


@pytest.fixture
def work(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    # Else TRL tells its makers that it is used.
    monkeypatch.setenv("CI", "1")
    from peers.policy_workload import PolicyWorkload

    return PolicyWorkload(
        num_prompts=NUM_PROMPTS,
        num_rollouts=NUM_ROLLOUTS,
        history=5,
        num_items=64,
        num_codes=16,
    )


@pytest.fixture
def peer(work):
    from peers.trl_peer import TrlPeer

    return TrlPeer(work)


def assert_same_gradients(ours: list[torch.Tensor], peer: list[torch.Tensor]) -> None:
    for one, other in zip(ours, peer, strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * largest)


def test_its_loss_and_gradients_over_our_rollouts_are_ours(work, peer) -> None:
    token_BT = work.prompts()
    features = work.features(token_BT)
    rolled = work.roll_out(features)
    advantage_BG = torch.randn(NUM_PROMPTS, NUM_ROLLOUTS)
    loss = work.update(features, rolled, advantage_BG)
    gradients = work.gradients()
    record = peer.record(token_BT, rolled, advantage_BG)
    peer_loss = peer.update(record)
    assert_same_gradients(gradients, work.gradients())
    # At ratio 1 ours is -mean A + beta KL, TRL's has -A once a code.
    kl = loss + advantage_BG.mean()
    assert kl > 1e-5
    torch.testing.assert_close(peer_loss, kl - NUM_LEVELS * advantage_BG.mean())
    torch.testing.assert_close(peer.aligned_update(record), loss)


def test_it_draws_items_that_exist_and_its_step_learns_from_them(work, peer) -> None:
    token_BT = work.prompts()
    features = work.features(token_BT)
    drawn = peer.roll_out(peer.rows(token_BT))
    item_BG = peer.items(drawn["completion_ids"])
    codes = work.trie.codes_NL[item_BG.flatten()].long()
    assert torch.equal(codes, drawn["completion_ids"])
    advantage_BG = drawn["advantages"].view(NUM_PROMPTS, NUM_ROLLOUTS)
    assert (advantage_BG != 0).any(1).all()
    rolled = work.with_items(features, work.roll_out(features), item_BG)
    torch.testing.assert_close(
        drawn["ref_per_token_logps"].view(*item_BG.shape, NUM_LEVELS),
        rolled.logprob_reference_BGL,
    )
    loss = work.update(features, rolled, advantage_BG)
    gradients = work.gradients()
    torch.testing.assert_close(peer.aligned_update(drawn), loss)
    assert_same_gradients(gradients, work.gradients())


def test_its_whole_step_is_its_rollouts_and_its_loss(work, peer, monkeypatch) -> None:
    drawn = []
    roll_out = peer.trainer._generate_and_score_completions

    def watched(rows):
        drawn.append(roll_out(rows))
        return drawn[-1]

    monkeypatch.setattr(peer.trainer, "_generate_and_score_completions", watched)
    for _ in range(2):
        peer.step(peer.rows(work.prompts()))
    gradients = work.gradients()
    peer.update(drawn[1])
    assert_same_gradients(gradients, work.gradients())
