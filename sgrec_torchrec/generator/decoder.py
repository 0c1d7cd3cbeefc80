"""The L-level code decoder: what is known of a user -> log-probabilities of codes.

Level l sees the user's hidden vector and the codes chosen so far; it is a small
residual network, so a beam step costs little. All probabilities are over the codes
that the trie allows.

Letters: X any leading shape, T contexts, S targets, L levels, K codes, D width of the
backbone, M width of the decoder.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie


class CodeScorer(Protocol):
    """What a beam asks of the decoder, whoever computes it."""

    def user_part(self, level: int, hidden_XD: Tensor) -> Tensor:
        """See ``CodeDecoder``."""

    def logits(self, level: int, user_part_XM: Tensor, codes_Xl: Tensor) -> Tensor:
        """See ``CodeDecoder``."""


class CodeDecoder(nn.Module):
    """L levels; level l adds l learned code vectors to the projected user vector."""

    def __init__(self, *, dim: int, width: int, num_levels: int, num_codes: int):
        super().__init__()
        self.num_levels = num_levels
        self.num_codes = num_codes
        self.project = nn.ModuleList(nn.Linear(dim, width) for _ in range(num_levels))
        self.prefix_codes = nn.ModuleList(
            nn.Embedding(level * num_codes, width) for level in range(1, num_levels)
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_levels))
        self.heads = nn.ModuleList(
            nn.Linear(width, num_codes) for _ in range(num_levels)
        )

    @staticmethod
    def of(config: GeneratorConfig, num_levels: int, num_codes: int) -> "CodeDecoder":
        """The decoder that the settings ask for."""
        return CodeDecoder(
            dim=config.dim,
            width=config.decoder_width,
            num_levels=num_levels,
            num_codes=num_codes,
        )

    def user_part(self, level: int, hidden_XD: Tensor) -> Tensor:
        """float [X, M]: the part of level's input that all beams of a user share."""
        part_XM: Tensor = self.project[level](hidden_XD)
        return part_XM

    def logits(self, level: int, user_part_XM: Tensor, codes_Xl: Tensor) -> Tensor:
        """float [X, K]: unnormalised scores of the level-th code.

        Args:
            level: 0 .. L - 1.
            user_part_XM: from ``user_part``; may broadcast against ``codes_Xl``.
            codes_Xl: int64 [X, level], the codes chosen so far.
        """
        state_XM = user_part_XM
        if level > 0:
            table = self.prefix_codes[level - 1]
            shift = torch.arange(level, device=codes_Xl.device) * self.num_codes
            state_XM = state_XM + table(codes_Xl + shift).sum(-2)
        logits_XK: Tensor = self.heads[level](self.blocks[level](state_XM))
        return logits_XK


class ResidualBlock(nn.Module):
    """x + W2 gelu(W1 norm(x)), normed: float [X, M] -> float [X, M]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.output_norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, state_XM: Tensor) -> Tensor:
        """See the class."""
        branch = self.contract(F.gelu(self.expand(self.input_norm(state_XM))))
        normed_XM: Tensor = self.output_norm(state_XM + branch)
        return normed_XM


def constrained_log_softmax(logits_XK: Tensor, log_mask_XK: Tensor) -> Tensor:
    """Log-probabilities over the legal codes; -inf on the others. float [X, K]."""
    return F.log_softmax(logits_XK + log_mask_XK, dim=-1)


def item_logprob(
    decoder: CodeDecoder,
    trie: PrefixTrie,
    hidden_TD: Tensor,
    context_S: Tensor,
    item_S: Tensor,
) -> Tensor:
    """float [S, L]: log-probability of each code of each target item.

    Under the trie-constrained distribution at temperature 1; the sum over L is the
    item's. What depends on the context alone is computed once per context, however many
    targets ask it. Keeps the graph for backward. Ranks do not communicate.

    Args:
        decoder: the code decoder.
        trie: the catalogue.
        hidden_TD: float [T, D] from the backbone, of positions or of whole histories.
        context_S: int64, which of them each target asks.
        item_S: int64, target items.
    """
    codes_SL = trie.codes_NL[item_S].long()
    nodes_SL = trie.prefix_nodes(codes_SL)
    root = torch.zeros(1, dtype=torch.int64, device=item_S.device)
    columns = []
    for level in range(trie.num_levels):
        part_TM = decoder.user_part(level, hidden_TD)
        if level == 0:
            logits = decoder.logits(0, part_TM, codes_SL[:0, :0])
            logprob_TK = constrained_log_softmax(logits, trie.log_mask(0, root))
            columns.append(logprob_TK[context_S, codes_SL[:, 0]])
            continue
        logits_SK = decoder.logits(level, part_TM[context_S], codes_SL[:, :level])
        mask_SK = trie.log_mask(level, nodes_SL[:, level])
        logprob_SK = constrained_log_softmax(logits_SK, mask_SK)
        columns.append(logprob_SK.gather(1, codes_SL[:, level, None]).squeeze(1))
    return torch.stack(columns, dim=1)
