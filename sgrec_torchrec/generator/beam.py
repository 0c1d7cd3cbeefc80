"""Constrained beam search and sampling without replacement over semantic IDs.

A history is encoded once per user; all its beams share that vector. No Python loop
over beams, no host synchronisation: L steps of tensor operations whose cost does not
depend on the catalogue. Nothing here communicates across ranks.

Letters: B users, W beams, L levels, K codes, G rollouts, H history items, D width.
"""

import torch
from torch import Tensor

from sgrec_torchrec.generator.decoder import CodeScorer, constrained_log_softmax
from sgrec_torchrec.generator.leaf_filter import LeafFilter
from sgrec_torchrec.generator.noise import hash_gumbel
from sgrec_torchrec.generator.prefix_cap import CapWalk, PrefixCap
from sgrec_torchrec.generator.prior import Prior, PriorWalk
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import Rollout

NEVER = float("-inf")
SEEN_MARGIN = 2
"""So many times the beams where some end in items that must not be drawn as well: a
prefix counts by all its items. Of 256 users of MovieLens, all draw what they would with
64 times the beams; with as many beams as draws, 8 % of the items are others."""


@torch.no_grad()
def beam_search(
    decoder: CodeScorer,
    trie: PrefixTrie,
    hidden_BD: Tensor,
    width: int,
    seen_item_BH: Tensor | None = None,
    prior: Prior | None = None,
    allowed: LeafFilter | None = None,
    cap: PrefixCap | None = None,
) -> Rollout:
    """The ``width`` best items by log-probability, distinct and legal by construction.

    Exact wherever the beam holds every prefix; else the usual beam approximation. A
    prefix without an item that may be returned never takes a beam, so every user gets
    ``width`` items, or all that there are.

    Args:
        decoder: the code decoder.
        trie: the catalogue.
        hidden_BD: float, from ``Generator.encode_last``.
        width: W, beams kept per level and items returned.
        seen_item_BH: int64, items that must not be returned, padded with -1; short for
            ``allowed=LeafFilter.without(trie, seen_item_BH)``.
        prior: mixed with the network's distribution; ranks, but leaves ``logprob_BG``.
        allowed: the items that may be returned. Probabilities stay those over the
            whole catalogue.
        cap: bounds the items that share a prefix.

    Returns:
        A Rollout with G = width; ``key_BG`` is the (mixed) log-probability that
        ordered it, ``logprob_BG`` the network's own.
    """
    beams = _Beams.start(hidden_BD)
    walk = PriorWalk(prior, trie) if prior else None
    capped = CapWalk(cap, trie.num_levels) if cap else None
    if seen_item_BH is not None:
        assert allowed is None, "give seen items or a filter, not both"
        allowed = LeafFilter.without(trie, seen_item_BH)
    key_BW = beams.score_BW
    for level in range(trie.num_levels):
        logprob_BWK = beams.score_BW[..., None] + _step_logprob(
            decoder, trie, hidden_BD, beams, level, 1.0
        )
        total_BWK = walk.mix(level, logprob_BWK) if walk else logprob_BWK
        if allowed is not None:
            total_BWK = allowed.rule_out(level, beams.node_BW, key_BW, total_BWK)
        count = min(width, total_BWK[0].numel())
        if capped:
            key_BW, place_BW = capped.choose(level, total_BWK, count)
        else:
            key_BW, place_BW = total_BWK.flatten(1).topk(count)
        if walk:
            walk.advance(level, place_BW, total_BWK[0].numel())
        # A slot that the filter ruled out is dead for the network's score too.
        score_BW = logprob_BWK.flatten(1).gather(1, place_BW)
        score_BW = score_BW.masked_fill(key_BW == NEVER, NEVER)
        beams = beams.grow(trie, level, score_BW, place_BW)
    return beams.to_rollout(trie, width, beams.score_BW, key_BW)


@torch.no_grad()
def sample_distinct(
    decoder: CodeScorer,
    trie: PrefixTrie,
    hidden_BD: Tensor,
    num_samples: int,
    user_key_B: Tensor,
    temperature: float = 1.0,
    seen_item_BH: Tensor | None = None,
) -> Rollout:
    """G distinct items per user: Gumbel-top-k over whole sequences.

    Sampling without replacement by stochastic beam search (Kool et al. 2019, arXiv
    1903.06059, algorithm 1): each child's Gumbel is drawn given that the largest of
    its siblings equals the parent's, so the G largest leaves are those of the whole
    catalogue. The noise is a function of the user's key, the prefix and the code.

    Args:
        decoder: the code decoder.
        trie: the catalogue.
        hidden_BD: float, from ``Generator.encode_last``.
        num_samples: G.
        user_key_B: int64, one seed per user (and step).
        temperature: of the distribution that is sampled; ``logprob_BG`` stays at 1.
        seen_item_BH: int64, items that must not be drawn, padded with -1. A prefix
            without another item takes no beam, so every user gets G items, or all that
            there are.

    Returns:
        A Rollout, by falling perturbed key.
    """
    beams = _Beams.start(hidden_BD)
    key_BW = logprob_BW = beams.score_BW
    allowed, margin = None, 1
    if seen_item_BH is not None:
        allowed, margin = LeafFilter.without(trie, seen_item_BH), SEEN_MARGIN
    for level in range(trie.num_levels):
        is_last = level == trie.num_levels - 1
        sampling_BWK = _step_logprob(
            decoder, trie, hidden_BD, beams, level, temperature
        )
        plain_BWK = (
            sampling_BWK
            if temperature == 1.0
            else _step_logprob(decoder, trie, hidden_BD, beams, level, 1.0)
        )
        total_BWK = beams.score_BW[..., None] + sampling_BWK
        prefix_key_BW = user_key_B[:, None] ^ (beams.node_BW * 0x9E3779B9 + level)
        noise_BWK = hash_gumbel(prefix_key_BW, 1 + level, trie.num_codes)
        key_BWK = _conditional_gumbel(total_BWK, total_BWK + noise_BWK, key_BW)
        if allowed is not None:
            key_BWK = allowed.rule_out(level, beams.node_BW, key_BW, key_BWK)
        wanted = num_samples if is_last else margin * num_samples
        count = min(wanted, total_BWK[0].numel())
        key_BW, place_BW = key_BWK.flatten(1).topk(count)
        score_BW = total_BWK.flatten(1).gather(1, place_BW)
        score_BW = score_BW.masked_fill(key_BW == NEVER, NEVER)
        logprob_BWK = logprob_BW[..., None] + plain_BWK
        logprob_BW = logprob_BWK.flatten(1).gather(1, place_BW)
        beams = beams.grow(trie, level, score_BW, place_BW)
    return beams.to_rollout(trie, num_samples, logprob_BW, key_BW)


class _Beams:
    """Prefixes of one level: their codes, trie nodes and scores."""

    def __init__(self, codes_BWl: Tensor, node_BW: Tensor, score_BW: Tensor) -> None:
        self.codes_BWl, self.node_BW, self.score_BW = codes_BWl, node_BW, score_BW

    @staticmethod
    def start(hidden_BD: Tensor) -> "_Beams":
        root_B1 = hidden_BD.new_zeros((len(hidden_BD), 1), dtype=torch.int64)
        return _Beams(root_B1[..., None][..., :0], root_B1, root_B1.to(torch.float32))

    def grow(
        self, trie: PrefixTrie, level: int, score_BW: Tensor, place_BW: Tensor
    ) -> "_Beams":
        """The chosen (beam, code) places as beams of the next level."""
        parent_BW = place_BW // trie.num_codes
        code_BW = place_BW % trie.num_codes
        parent_codes = self.codes_BWl.gather(
            1, parent_BW[..., None].expand(-1, -1, level)
        )
        node_BW = trie.child(level, self.node_BW.gather(1, parent_BW), code_BW)
        codes_BWl = torch.cat((parent_codes, code_BW[..., None]), dim=-1)
        return _Beams(codes_BWl, node_BW, score_BW)

    def to_rollout(
        self, trie: PrefixTrie, width: int, logprob_BW: Tensor, key_BW: Tensor
    ) -> Rollout:
        """Leaves as items; impossible slots become item -1 with -inf."""
        is_real_BW = self.score_BW > NEVER
        item_BW = trie.item_of_leaf_N[self.node_BW].long()
        missing = width - item_BW.shape[1]

        def finish(values_BW: Tensor, filler: float) -> Tensor:
            masked = values_BW.masked_fill(~is_real_BW, filler)
            return torch.nn.functional.pad(masked, (0, missing), value=filler)

        codes = self.codes_BWl.masked_fill(~is_real_BW[..., None], -1)
        return Rollout(
            item_BG=finish(item_BW, -1),
            codes_BGL=torch.nn.functional.pad(codes, (0, 0, 0, missing), value=-1),
            logprob_BG=finish(logprob_BW, NEVER),
            logprob_sampling_BG=finish(self.score_BW, NEVER),
            key_BG=finish(key_BW, NEVER),
        )


def _step_logprob(
    decoder: CodeScorer,
    trie: PrefixTrie,
    hidden_BD: Tensor,
    beams: _Beams,
    level: int,
    temperature: float,
) -> Tensor:
    """float [B, W, K]: log-probability of each next code; -inf where illegal."""
    part_B1M = decoder.user_part(level, hidden_BD)[:, None]
    logits_BWK = decoder.logits(level, part_B1M, beams.codes_BWl).float()
    mask_BWK = trie.log_mask(level, beams.node_BW)
    return constrained_log_softmax(logits_BWK / temperature, mask_BWK)


def _conditional_gumbel(
    logprob_BWK: Tensor, perturbed_BWK: Tensor, parent_key_BW: Tensor
) -> Tensor:
    """Shift the children's Gumbels so that their maximum is the parent's.

    Kool et al. 2019, appendix B.3, the numerically stable form:
    v = T - g + log1mexp(g - Z), g' = T - max(0, v) - log(1 + exp(-|v|)).
    """
    largest_BW1 = perturbed_BWK.amax(-1, keepdim=True)
    parent_BW1 = parent_key_BW[..., None]
    gap_BWK = perturbed_BWK - largest_BW1
    shift_BWK = parent_BW1 - perturbed_BWK + torch.log1p(-torch.exp(gap_BWK))
    key_BWK = (
        parent_BW1 - shift_BWK.clamp(min=0) - torch.log1p(torch.exp(-shift_BWK.abs()))
    )
    is_dead = (logprob_BWK == NEVER) | (parent_BW1 == NEVER)
    return key_BWK.masked_fill(is_dead, NEVER)
