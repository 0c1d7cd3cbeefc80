"""A sparse next-item distribution beside the network's, followed through the trie.

The evidence (or any other source) gives each user a few hundred items with
probabilities. Their sums per prefix mix with the network's prefix probabilities, so a
beam over the mixture stays exact: p(prefix) = (1 - w) p_network + w p_prior.

Letters: B users, M candidates, W beams, L levels, K codes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Candidates of each user; rows of ``probability_BM`` sum to at most 1."""

    item_BM: Tensor
    """int64, distinct within a row, padded with -1."""
    probability_BM: Tensor
    """float32, 0 at the padding."""
    weight: float
    """w in [0, 1): the prior's share of the mixture."""


class PriorWalk:
    """Which beam each candidate still stands on, level by level."""

    def __init__(self, prior: Prior, trie: PrefixTrie) -> None:
        self.weight = prior.weight
        self.num_codes = trie.num_codes
        self.codes_BML = trie.codes_NL[prior.item_BM.clamp(min=0)].long()
        self.mass_BM = prior.probability_BM.masked_fill(prior.item_BM < 0, 0.0)
        self.beam_BM = torch.zeros_like(prior.item_BM)

    def mix(self, level: int, logprob_BWK: Tensor) -> Tensor:
        """float [B, W, K]: log of the mixture, from the network's log-probabilities.

        Codes that the trie forbids stay at -inf: no candidate has them.
        """
        mass_BP = torch.zeros_like(logprob_BWK).flatten(1)
        mass_BP.scatter_add_(1, self._place(level), self.mass_BM)
        log_prior = (mass_BP * self.weight).log().view_as(logprob_BWK)
        log_network = logprob_BWK + math.log1p(-self.weight)
        return torch.logaddexp(log_network, log_prior)

    def advance(self, level: int, chosen_BW: Tensor, num_places: int) -> None:
        """Follow the chosen (beam, code) places; other candidates lose their mass."""
        beam_of_place = chosen_BW.new_full((len(chosen_BW), num_places), -1)
        new_beam = torch.arange(chosen_BW.shape[1], device=chosen_BW.device)
        beam_of_place.scatter_(1, chosen_BW, new_beam.expand_as(chosen_BW))
        beam_BM = beam_of_place.gather(1, self._place(level))
        self.mass_BM = self.mass_BM.masked_fill(beam_BM < 0, 0.0)
        self.beam_BM = beam_BM.clamp(min=0)

    def _place(self, level: int) -> Tensor:
        return self.beam_BM * self.num_codes + self.codes_BML[..., level]
