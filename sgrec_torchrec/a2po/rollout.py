"""Prompts -> groups of rollouts of the live policy, and the batch that it learns from.

A history is encoded once for all rollouts of its group: in the rollout, by the policy
and by the reference, and in the update. Letters: B prompts, G rollouts, L code levels,
S rollouts of the groups that teach, laid end to end.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.a2po.loss import PolicyTerms, policy_loss
from sgrec_torchrec.config import AlignConfig
from sgrec_torchrec.generator.beam import beam_search, sample_distinct
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.generator.model import Generator, Tower
from sgrec_torchrec.logs.stream import EvalBatch
from sgrec_torchrec.schema import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledOut:
    """Groups, and what the reference thinks of them.

    ``logprob_reference_BGL`` float32: by code, under the trie, at temperature 1; 0
    where a slot has no item. ``entropy_B``: the policy's, of the first code, nats.
    """

    rollout: Rollout
    logprob_reference_BGL: Tensor
    entropy_B: Tensor

    def take(self, rows: Tensor) -> "RolledOut":
        """The given groups."""
        rollout = self.rollout
        return RolledOut(
            rollout=Rollout(
                item_BG=rollout.item_BG[rows],
                codes_BGL=rollout.codes_BGL[rows],
                logprob_BG=rollout.logprob_BG[rows],
                logprob_sampling_BG=rollout.logprob_sampling_BG[rows],
                key_BG=rollout.key_BG[rows],
            ),
            logprob_reference_BGL=self.logprob_reference_BGL[rows],
            entropy_B=self.entropy_B[rows],
        )


def frozen_copy(generator: Generator) -> Tower:
    """The reference policy: a copy of all that is dense, without gradients.

    The sharded tables are frozen in post-training, so both policies share them, and a
    rank holds each shard once.
    """
    trie = generator.tower.trie
    # The trie grows with the catalogue and never changes.
    reference = copy.deepcopy(generator.tower, {id(trie): trie})
    reference.requires_grad_(False)
    return reference.eval()


@torch.no_grad()
def roll_out(
    generator: Generator,
    reference: Tower,
    batch: EvalBatch,
    key_B: Tensor,
    settings: AlignConfig,
    *,
    filter_seen: bool,
) -> RolledOut:
    """G items for each prompt of this rank, by falling log-probability.

    Looks up sharded tables once: all ranks call together.

    Args:
        key_B: int64, the noise of each prompt.
        filter_seen: no item of the history is drawn.
    """
    looked_up = generator.tables(batch.features)
    tower = generator.tower
    hidden_BD = tower.encode_last(looked_up)
    seen_BH = batch.seen_item_BH() if filter_seen else None
    if settings.rollouts == "beam":
        rollout = beam_search(
            tower.decoder, tower.trie, hidden_BD, settings.num_rollouts, seen_BH
        )
    else:
        drawn = sample_distinct(
            tower.decoder,
            tower.trie,
            hidden_BD,
            settings.num_rollouts,
            key_B,
            settings.temperature,
            seen_BH,
        )
        rollout = _surest_first(drawn)
    root_logprob_BK = _root_logprob(tower, hidden_BD)
    return RolledOut(
        rollout=rollout,
        logprob_reference_BGL=_group_logprob(
            reference, reference.encode_last(looked_up), rollout.item_BG
        ),
        entropy_B=-(root_logprob_BK.exp() * root_logprob_BK.clamp(min=-1e4)).sum(-1),
    )


class PolicyOutput(NamedTuple):
    """Detached figures of an update, per rank; the loss first."""

    loss: Tensor
    logprob_SL: Tensor
    """Of all slots, before the update."""
    kl_S: Tensor
    """Of those that weigh."""
    clip_share: Tensor
    clamp_share: Tensor


@dataclass(slots=True, kw_only=True)
class PolicyBatch:
    """A ``LearningBatch`` of groups: every rollout is a target of its prompt."""

    features: KeyedJaggedTensor
    target_context_S: Tensor
    target_item_S: Tensor
    terms: PolicyTerms
    position_key_T: Tensor | None = None
    """No dropout: the ratio compares the same network."""
    trains_tables: bool = False
    asks_ends: bool = True

    def output(self, logprob_SL: Tensor, num_positions: int) -> PolicyOutput:
        """The clipped policy loss."""
        del num_positions
        loss, figures = policy_loss(logprob_SL, self.terms)
        return PolicyOutput(
            loss=loss,
            logprob_SL=logprob_SL.detach(),
            kl_S=figures.kl_S,
            clip_share=loss.new_tensor(figures.clip_share),
            clamp_share=loss.new_tensor(figures.clamp_share),
        )


def policy_batch(
    features: KeyedJaggedTensor,
    rolled: RolledOut,
    advantage_BG: Tensor,
    weight_B: Tensor,
    settings: AlignConfig,
    scale: float,
    logprob_old_SL: Tensor | None = None,
) -> PolicyBatch:
    """The groups as targets. Slots without an item, and groups of weight 0, weigh 0.

    Args:
        features: of the same prompts, on the device.
        scale: world size / rollouts of all ranks that weigh.
        logprob_old_SL: of the policy that rolled out; None while it has not learned.
    """
    item_BG = rolled.rollout.item_BG
    num_prompts, num_rollouts = item_BG.shape
    prompt_B = torch.arange(num_prompts, device=item_BG.device)
    is_real_BG = item_BG >= 0
    weight_BG = weight_B[:, None] * is_real_BG
    return PolicyBatch(
        features=features,
        target_context_S=prompt_B.repeat_interleave(num_rollouts),
        target_item_S=item_BG.clamp(min=0).reshape(-1),
        terms=PolicyTerms(
            logprob_old_SL=logprob_old_SL,
            logprob_reference_SL=rolled.logprob_reference_BGL.flatten(0, 1),
            advantage_S=advantage_BG.reshape(-1),
            weight_S=weight_BG.reshape(-1),
            scale=scale,
            clip=settings.clip,
            kl_weight=settings.kl_weight,
        ),
    )


def _surest_first(drawn: Rollout) -> Rollout:
    """By log-probability, not by noise: a reward may depend on the place."""
    order_BG = drawn.logprob_BG.argsort(dim=1, descending=True, stable=True)
    order_BGL = order_BG[..., None].expand_as(drawn.codes_BGL)
    return Rollout(
        item_BG=drawn.item_BG.gather(1, order_BG),
        codes_BGL=drawn.codes_BGL.gather(1, order_BGL),
        logprob_BG=drawn.logprob_BG.gather(1, order_BG),
        logprob_sampling_BG=drawn.logprob_sampling_BG.gather(1, order_BG),
        key_BG=drawn.key_BG.gather(1, order_BG),
    )


def _group_logprob(tower: Tower, hidden_BD: Tensor, item_BG: Tensor) -> Tensor:
    """float32 [B, G, L]; 0 where there is no item."""
    num_prompts, num_rollouts = item_BG.shape
    context_S = torch.arange(num_prompts, device=item_BG.device)
    logprob_SL = item_logprob(
        tower.decoder,
        tower.trie,
        hidden_BD,
        context_S.repeat_interleave(num_rollouts),
        item_BG.clamp(min=0).reshape(-1),
    )
    logprob_BGL = logprob_SL.reshape(num_prompts, num_rollouts, -1)
    return logprob_BGL.masked_fill((item_BG < 0)[..., None], 0.0)


def _root_logprob(tower: Tower, hidden_BD: Tensor) -> Tensor:
    part_BM = tower.decoder.user_part(0, hidden_BD)
    no_codes = torch.zeros(0, 0, dtype=torch.int64, device=hidden_BD.device)
    root = torch.zeros(1, dtype=torch.int64, device=hidden_BD.device)
    logits_BK = tower.decoder.logits(0, part_BM, no_codes)
    return (logits_BK + tower.trie.log_mask(0, root)).log_softmax(-1)
