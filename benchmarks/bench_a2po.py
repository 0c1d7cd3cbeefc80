"""The policy update: history shared by a group against repeated G times.

The peer is what trainers of language models do with a group: each of its G rollouts is
a sequence of its own, prompt and all. Same network, weights, rollouts, rewards and
loss, trie-masked logits on both sides, one thread each; loss and gradients must agree
(1e-5; 1e-4 of each parameter's largest) before anything is timed. The last row is the
share of a step that rewards and advantages take.

Usage: python benchmarks/bench_a2po.py [--prompts 8] [--rollouts 16] [--history 150]
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from peers.workload import (
    random_columns,
    random_generator,
    scattered_trie,
    to_features,
)
from reporting import Row, relative_spread, report, time_interleaved
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.a2po.advantage import a2po_advantage
from sgrec_torchrec.a2po.loss import PolicyTerms
from sgrec_torchrec.a2po.reward import Group, next_item_reward
from sgrec_torchrec.a2po.rollout import PolicyBatch, frozen_copy, roll_out
from sgrec_torchrec.config import AlignConfig, GeneratorConfig
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.logs.stream import EvalBatch

CONFIG = GeneratorConfig(
    dim=64, num_layers=2, num_heads=2, decoder_width=256, dropout=0.0
)
NUM_ITEMS, NUM_CODES = 100_000, 256


class Workload:
    """Fresh prompts of one length, rolled out and rewarded by a fixed policy."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.trie = scattered_trie(NUM_ITEMS, NUM_CODES)
        self.model = random_generator(self.trie, CONFIG, seed=0)
        self.reference = frozen_copy(self.model)
        self.settings = AlignConfig(num_rollouts=args.rollouts)
        self.num_prompts, self.history = args.prompts, args.history
        self.noise = torch.Generator().manual_seed(1)

    def features(self) -> KeyedJaggedTensor:
        """Histories of so many events, and their begin markers."""
        lengths = torch.full((self.num_prompts,), self.history)
        columns = random_columns(self.trie, lengths, CONFIG, self.noise)
        return to_features(columns, lengths)

    def roll_out(self, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor, Tensor]:
        """Items [B, G], old log-probabilities [B, G, L], advantages [B, G]."""
        key_B = torch.randint(1 << 62, (self.num_prompts,), generator=self.noise)
        none = torch.zeros(0, dtype=torch.int64)
        batch = EvalBatch(
            features=features,
            row_B=torch.arange(self.num_prompts),
            target_B=torch.zeros(self.num_prompts, dtype=torch.int64),
            seen_items_P=none,
            seen_offsets_B1=torch.zeros(self.num_prompts + 1, dtype=torch.int64),
        )
        rolled = roll_out(
            self.model, self.reference, batch, key_B, self.settings, filter_seen=False
        )
        item_BG = rolled.rollout.item_BG
        # Every group has its hit, so that every group teaches.
        place_B = torch.randint(item_BG.shape[1], (len(item_BG),), generator=self.noise)
        target_B = item_BG.gather(1, place_B[:, None]).squeeze(1)
        advantage_BG = advantages(item_BG, target_B)
        return item_BG, rolled.logprob_old_BGL, advantage_BG


def advantages(item_BG: Tensor, target_B: Tensor) -> Tensor:
    """Business reward, a made-up semantic one, and their fusion."""
    group = Group(
        prompt_B=torch.arange(len(item_BG)).numpy(), item_BG=item_BG, target_B=target_B
    )
    semantic_BG = (item_BG % 97).float() / 97
    judged_BG = torch.ones_like(item_BG, dtype=torch.bool)
    return a2po_advantage(next_item_reward(group), semantic_BG, judged_BG).advantage_BG


def update(
    model: Generator, features: KeyedJaggedTensor, groups: tuple[Tensor, ...], *, G: int
) -> Tensor:
    """Loss of all groups; G prompts stand in ``features`` for each of them, or one."""
    item_BG, logprob_old_BGL, advantage_BG = groups
    num_rollouts = item_BG.shape[1]
    end_P = features["item"].offsets()[1:].long() - 1
    flat = (item_BG.numel(), -1)
    batch = PolicyBatch(
        features=features,
        target_context_S=end_P
        if num_rollouts == G
        else end_P.repeat_interleave(num_rollouts),
        target_item_S=item_BG.reshape(-1),
        terms=PolicyTerms(
            logprob_old_SL=logprob_old_BGL.reshape(flat),
            logprob_reference_SL=logprob_old_BGL.reshape(flat),
            advantage_S=advantage_BG.reshape(-1),
            weight_S=torch.ones(item_BG.numel()),
            scale=1 / item_BG.numel(),
            clip=0.2,
            kl_weight=0.05,
        ),
    )
    model.zero_grad(set_to_none=True)
    loss, _ = model(batch)
    torch.autograd.backward(loss)
    return loss.detach()


def repeated(features: KeyedJaggedTensor, num_rollouts: int) -> KeyedJaggedTensor:
    """Every prompt G times in a row."""
    names = features.keys()
    columns = [
        features[name]
        .values()
        .view(features.stride(), -1)
        .repeat_interleave(num_rollouts, 0)
        for name in names
    ]
    length = columns[0].shape[1]
    return KeyedJaggedTensor(
        names,
        torch.cat([column.reshape(-1) for column in columns]),
        lengths=torch.full((len(columns[0]) * len(names),), length),
    )


def check_equal(work: Workload) -> None:
    """Raise RuntimeError where the two sides disagree on loss or gradients."""
    features = work.features()
    groups = work.roll_out(features)
    num_rollouts = groups[0].shape[1]
    sides = []
    for one, G in ((features, 1), (repeated(features, num_rollouts), num_rollouts)):
        loss = update(work.model, one, groups, G=G)
        gradients = [weight.grad.clone() for weight in work.model.tower.parameters()]
        sides.append((loss, gradients))
    (ours, ours_gradients), (peer, peer_gradients) = sides
    torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-7)
    for one, other in zip(ours_gradients, peer_gradients, strict=True):
        error = float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))
        if error > 1e-4:
            raise RuntimeError(f"gradients differ by {error:.1e} of their largest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--history", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = Workload(args)
    check_equal(work)
    queue = []
    for _ in range(8):
        features = work.features()
        groups = work.roll_out(features)
        queue.append((features, repeated(features, args.rollouts), groups))
    turn = {"ours": 0, "peer": 0}

    def ours() -> object:
        features, _, groups = queue[turn["ours"] % 8]
        turn["ours"] += 1
        return update(work.model, features, groups, G=1)

    def peer() -> object:
        _, features, groups = queue[turn["peer"] % 8]
        turn["peer"] += 1
        return update(work.model, features, groups, G=args.rollouts)

    ours_s, peer_s = time_interleaved(ours, peer)

    def step() -> object:
        features = work.features()
        return update(work.model, features, work.roll_out(features), G=1)

    item_BG = queue[0][2][0]
    step_s, reward_s = time_interleaved(
        step, lambda: advantages(item_BG, item_BG[:, 0])
    )
    shape = f"{args.prompts} prompts of {args.history}, {args.rollouts} rollouts"
    rows = [
        Row(
            name=f"policy update, {shape}",
            unit="ms",
            ours=1e3 * median(ours_s),
            peer=1e3 * median(peer_s),
            peer_name="the prompt repeated for every rollout",
            ratio=median(peer_s) / median(ours_s),
            spread=relative_spread(ours_s),
        ),
        Row(
            name="rewards and advantages, share of a step",
            unit="share",
            ours=median(reward_s) / median(step_s),
            peer=None,
            peer_name="",
            ratio=None,
            spread=relative_spread(reward_s),
        ),
    ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
