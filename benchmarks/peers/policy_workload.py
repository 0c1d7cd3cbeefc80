"""Prompts, groups of rollouts and their rewards, for benchmarks of post-training.

A prompt is one token a position, so that a trainer of language models can be given it:
0 begins a history, 1 + n is an event with item n, whose gap, event type and value go by
the item.

Letters: B prompts, G rollouts, L levels, T positions of a prompt, F features, V tokens.
"""

import copy
from dataclasses import replace

import numpy as np
import torch
from peers.workload import (
    event_columns,
    random_generator,
    scattered_trie,
    to_features,
)
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.a2po.advantage import Rewards, a2po_advantage
from sgrec_torchrec.a2po.reward import Group, next_item_reward
from sgrec_torchrec.a2po.rollout import (
    RolledOut,
    frozen_copy,
    policy_batch,
    roll_out,
)
from sgrec_torchrec.config import AlignConfig, GeneratorConfig
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.logs.stream import EvalBatch

CONFIG = GeneratorConfig(
    dim=64, num_layers=2, num_heads=2, decoder_width=256, dropout=0.0
)
REFERENCE_SHIFT = 0.02
"""Share by which the reference's weights differ, so that the KL term has a gradient."""


class PolicyWorkload:
    """Fresh prompts of one length, and what a fixed policy makes of them."""

    def __init__(
        self,
        *,
        num_prompts: int,
        num_rollouts: int,
        history: int,
        num_items: int,
        num_codes: int,
    ) -> None:
        self.num_prompts, self.history = num_prompts, history
        self.num_hits = num_prompts
        """So many groups of a step hold their prompt's target; the others are dead."""
        self.settings = AlignConfig(num_rollouts=num_rollouts)
        self.trie = scattered_trie(num_items, num_codes)
        self.model = random_generator(self.trie, CONFIG, seed=0)
        # As in post-training, where the tables are frozen.
        self.model.tables.requires_grad_(False)
        self.noise = torch.Generator().manual_seed(1)
        self.reference = frozen_copy(self.model)
        for weight in self.reference.parameters():
            shift = torch.randn(weight.shape, generator=self.noise)
            weight.mul_(1 + REFERENCE_SHIFT * shift)
        events = event_columns(self.trie, torch.arange(num_items), CONFIG, self.noise)
        self.columns_FV = torch.cat((torch.zeros_like(events[:, :1]), events), dim=1)

    def prompts(self) -> Tensor:
        """int64 [B, T]: a begin marker and ``history`` random events each."""
        token_BT = torch.randint(
            1,
            self.columns_FV.shape[1],
            (self.num_prompts, self.history + 1),
            generator=self.noise,
        )
        token_BT[:, 0] = 0
        return token_BT

    def features(self, token_BT: Tensor) -> KeyedJaggedTensor:
        """The prompts as ``TokenBatch.features``."""
        num_prompts, num_positions = token_BT.shape
        lengths = torch.full((num_prompts,), num_positions - 1)
        return to_features(self.columns_FV[:, token_BT.flatten()], lengths)

    def roll_out(self, features: KeyedJaggedTensor) -> RolledOut:
        """G distinct items for each of B prompts."""
        key_B = torch.randint(1 << 62, (self.num_prompts,), generator=self.noise)
        none = torch.zeros(0, dtype=torch.int64)
        batch = EvalBatch(
            features=features,
            row_B=torch.arange(self.num_prompts),
            target_B=torch.zeros(self.num_prompts, dtype=torch.int64),
            seen_items_P=none,
            seen_offsets_B1=torch.zeros(self.num_prompts + 1, dtype=torch.int64),
        )
        return roll_out(
            self.model, self.reference, batch, key_B, self.settings, filter_seen=False
        )

    @torch.no_grad()
    def with_items(
        self, features: KeyedJaggedTensor, rolled: RolledOut, item_BG: Tensor
    ) -> RolledOut:
        """What ``roll_out`` would have said, had it drawn these items."""
        looked_up = self.model.tables(features)
        context_S = torch.arange(len(item_BG)).repeat_interleave(item_BG.shape[1])
        reference_SL = item_logprob(
            self.reference.decoder,
            self.trie,
            self.reference.encode_last(looked_up),
            context_S,
            item_BG.flatten(),
        )
        return regrouped(rolled, item_BG, reference_SL.view(*item_BG.shape, -1))

    def targets(self, item_BG: Tensor) -> Tensor:
        """int64 [B]: one of the group's items, or, after ``num_hits`` groups, none."""
        place_B1 = torch.randint(
            item_BG.shape[1], (len(item_BG), 1), generator=self.noise
        )
        target_B = item_BG.gather(1, place_B1).squeeze(1)
        target_B[self.num_hits :] = self.trie.num_items
        return target_B

    def update(
        self, features: KeyedJaggedTensor, rolled: RolledOut, advantage_BG: Tensor
    ) -> Tensor:
        """Loss of the groups, float scalar; the gradients lie in the model's tower.

        ``features`` are of as many prompts as there are groups.
        """
        batch = policy_batch(
            features,
            rolled,
            advantage_BG,
            torch.ones(len(advantage_BG)),
            self.settings,
            scale=1 / advantage_BG.numel(),
        )
        self.model.zero_grad(set_to_none=True)
        loss, _ = self.model(batch)
        torch.autograd.backward(loss)
        return loss.detach()

    def gradients(self) -> list[Tensor]:
        """Copies of the gradients of the last update, ours or a peer's."""
        tower = self.model.tower
        return [weight.grad.clone() for weight in tower.parameters()]


def group_of(item_BG: Tensor, target_B: Tensor) -> Group:
    """The rollouts as a reward takes them."""
    return Group(prompt_B=np.arange(len(item_BG)), item_BG=item_BG, target_B=target_B)


def advantages(item_BG: Tensor, target_B: Tensor) -> Tensor:
    """float [B, G]: business reward, a made-up semantic one, and their fusion."""
    semantic_BG = (item_BG % 97).float() / 97
    judged_BG = torch.ones_like(item_BG, dtype=torch.bool)
    business_BG = next_item_reward(group_of(item_BG, target_B))
    rewards = Rewards.of(business_BG, semantic_BG, judged_BG)
    return a2po_advantage(rewards).advantage_BG


def regrouped(rolled: RolledOut, item_BG: Tensor, reference_BGL: Tensor) -> RolledOut:
    """What an update reads of ``rolled``, replaced."""
    return replace(
        rolled,
        rollout=replace(rolled.rollout, item_BG=item_BG),
        logprob_reference_BGL=reference_BGL,
    )


def each_alone(rolled: RolledOut) -> RolledOut:
    """Every rollout as a group of one."""
    item_BG = rolled.rollout.item_BG
    reference_SGL = rolled.logprob_reference_BGL.reshape(item_BG.numel(), 1, -1)
    return regrouped(rolled, item_BG.reshape(-1, 1), reference_SGL)


def reference_generator(work: PolicyWorkload) -> Generator:
    """The reference policy as a whole generator, for a peer that needs one."""
    twin = copy.deepcopy(work.model, {id(work.trie): work.trie})
    twin.tower = work.reference
    return twin
