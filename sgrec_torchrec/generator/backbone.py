"""Causal pre-norm transformer over jagged histories.

Letters: T positions of all sequences end to end, B sequences, P past positions of one
sequence, Y layers, H heads, D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.generator.attention import (
    AttentionGroups,
    PaddedPast,
    jagged_causal_attention,
    last_position_attention,
)
from sgrec_torchrec.generator.noise import hash_dropout

ROTARY_BASE = 10_000.0
Rotation = tuple[Tensor, Tensor]
"""cos and sin of each position, as ``rotary_angles`` gives them."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Number of a layer, its queries, keys and values -> what attention makes of them, of
the queries' shape."""


class Backbone(nn.Module):
    """Runs once over a history; its cost does not depend on the catalogue."""

    def __init__(
        self, *, dim: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.head_dim = dim // num_heads
        self.input_norm = nn.RMSNorm(dim, eps=1e-6)
        self.layers = nn.ModuleList(
            Layer(dim=dim, num_heads=num_heads, dropout=dropout, salt=16 * (1 + index))
            for index in range(num_layers)
        )
        self.output_norm = nn.RMSNorm(dim, eps=1e-6)

    @staticmethod
    def of(config: GeneratorConfig) -> "Backbone":
        """The backbone that the settings ask for."""
        return Backbone(
            dim=config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
        )

    def forward(
        self, input_TD: Tensor, offsets_B1: Tensor, position_key_T: Tensor | None
    ) -> Tensor:
        """float [T, D]: what is known after each position.

        Args:
            input_TD: float [T, D], sequences end to end.
            offsets_B1: int64 [B + 1], where each sequence starts.
            position_key_T: int64 [T], keys of the dropout noise; None: no dropout.
        """
        groups = AttentionGroups(offsets_B1)
        rotation = self._rotation(input_TD, offsets_B1)
        state_TD: Tensor = self.input_norm(input_TD)
        if position_key_T is not None:
            state_TD = hash_dropout(state_TD, position_key_T, 0, self.dropout)

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return jagged_causal_attention(query, key, value, groups)

        state_TD = walk(self.stack(), state_TD, rotation, attend, position_key_T)
        state_TD = self.output_norm(state_TD)
        return state_TD

    def ends(self, input_TD: Tensor, offsets_B1: Tensor) -> Tensor:
        """float [B, D]: what is known after each whole sequence. No dropout.

        Equals ``forward``'s rows at the ends up to rounding: of the top layer only
        those are computed, beside the keys and values.

        Args:
            input_TD: float [T, D], sequences end to end.
            offsets_B1: int64 [B + 1], where each sequence starts.
        """
        return self._ends(input_TD, offsets_B1)[0]

    def read(self, input_TD: Tensor, offsets_B1: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As ``ends``, and what ``extend`` goes on from.

        Returns:
            float [B, D], and each layer's keys and values, float [T, 2, H, D].
        """
        hidden_BD, keep = self._ends(input_TD, offsets_B1)
        return hidden_BD, [torch.stack(pair, dim=1) for pair in keep]

    def _ends(
        self, input_TD: Tensor, offsets_B1: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        groups = AttentionGroups(offsets_B1)
        rotation = self._rotation(input_TD, offsets_B1)
        state_TD: Tensor = self.input_norm(input_TD)
        keep: list[tuple[Tensor, Tensor]] = []
        *below, top = self.stack()

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keep.append((key, value))
            return jagged_causal_attention(query, key, value, groups)

        state_TD = walk(below, state_TD, rotation, attend)
        key, value = top.key_value_of(state_TD, rotation)
        keep.append((key, value))
        last_B = offsets_B1[1:] - 1
        state_BD, (cos, sin) = state_TD[last_B], rotation
        query = top.query_of(state_BD, (cos[last_B], sin[last_B]))
        attended = last_position_attention(query, key, value, groups)
        hidden_BD: Tensor = self.output_norm(top(state_BD, attended, None))
        return hidden_BD, keep

    def _rotation(self, input_TD: Tensor, offsets_B1: Tensor) -> Rotation:
        place_T = torch.arange(len(input_TD), device=input_TD.device)
        start_T = offsets_B1[:-1].repeat_interleave(
            offsets_B1.diff(), output_size=len(input_TD)
        )
        return rotary_angles(place_T - start_T, self.head_dim)

    def stack(self) -> list["Layer"]:
        """The layers, from the bottom to the top."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def extend(
        self, input_TD: Tensor, offsets_B1: Tensor, past_B: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """What is known after new positions of sequences whose past is kept.

        Equals ``forward`` over past and new positions together, up to rounding, at the
        cost of the new ones. No dropout.

        Args:
            input_TD: float [T, D], the new positions of all sequences end to end.
            offsets_B1: int64 [B + 1], where those of each sequence start.
            past_B: per sequence, float [Y, P, 2, H, D], as ``read`` gave of its past.

        Returns:
            float [T, D], and per sequence the past with the new positions added.
        """
        past = PaddedPast(past_B, offsets_B1)
        rotation = rotary_angles(past.place_T, self.head_dim)
        state_TD: Tensor = self.input_norm(input_TD)
        state_TD = walk(self.stack(), state_TD, rotation, past.attend)
        state_TD = self.output_norm(state_TD)
        return state_TD, past.grown()


class Layer(nn.Module):
    """Attention and a gated feed-forward, each a residual branch."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float, salt: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.dropout, self.salt = dropout, salt
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.feed_norm = nn.RMSNorm(dim, eps=1e-6)
        self.feed_in = nn.Linear(dim, 4 * dim, bias=False)
        self.feed_out = nn.Linear(2 * dim, dim, bias=False)

    def query_key_value_of(
        self, state_TD: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Three times float [T, H, D]; queries and keys know their positions."""
        mixed = self.query_key_value(self.attention_norm(state_TD))
        query, key, value = mixed.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return rotate(query, rotation), rotate(key, rotation), value

    def query_of(self, state_TD: Tensor, rotation: Rotation) -> Tensor:
        """The first of ``query_key_value_of`` alone."""
        weight = self.query_key_value.weight[: state_TD.shape[-1]]
        query = F.linear(self.attention_norm(state_TD), weight)
        heads = query.view(*query.shape[:-1], self.num_heads, -1)
        return rotate(heads, rotation)

    def key_value_of(
        self, state_TD: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor]:
        """The other two alone."""
        weight = self.query_key_value.weight[state_TD.shape[-1] :]
        mixed = F.linear(self.attention_norm(state_TD), weight)
        key, value = mixed.view(*mixed.shape[:-1], 2, self.num_heads, -1).unbind(-3)
        return rotate(key, rotation), value

    def forward(
        self, state_TD: Tensor, attended_THD: Tensor, position_key_T: Tensor | None
    ) -> Tensor:
        """float [T, D] -> float [T, D], given what attention made of the state."""
        branch = self.attention_out(attended_THD.flatten(-2))
        state_TD = state_TD + self._drop(branch, position_key_T, self.salt)
        gate, up = self.feed_in(self.feed_norm(state_TD)).chunk(2, dim=-1)
        branch = self.feed_out(F.silu(gate) * up)
        return state_TD + self._drop(branch, position_key_T, self.salt + 1)

    def _drop(self, branch: Tensor, key_T: Tensor | None, salt: int) -> Tensor:
        if key_T is None:
            return branch
        return hash_dropout(branch, key_T, salt, self.dropout)


def walk(
    layers: Sequence[Layer],
    state_TD: Tensor,
    rotation: Rotation,
    attend: Attend,
    position_key_T: Tensor | None = None,
) -> Tensor:
    """float [T, D] -> float [T, D]: through the layers, from the bottom to the top.

    What a position sees is ``attend``'s affair, and so is what it keeps of the layers'
    keys and values. Positions may have several dimensions, as [R, P, D].

    Args:
        layers: all, or the lower ones.
        rotation: of each position.
        attend: called once a layer, in order.
        position_key_T: int64 [T], keys of the dropout noise; None: no dropout.
    """
    for index, layer in enumerate(layers):
        query, key, value = layer.query_key_value_of(state_TD, rotation)
        attended = attend(index, query, key, value)
        state_TD = layer(state_TD, attended, position_key_T)
    return state_TD


def rotary_angles(place_T: Tensor, head_dim: int) -> Rotation:
    """cos and sin, float [T, 1, head_dim / 2] (rotary embedding, arXiv 2104.09864)."""
    half = head_dim // 2
    power = torch.arange(half, device=place_T.device) / half
    angle = place_T[:, None] * ROTARY_BASE**-power
    return angle.cos()[:, None], angle.sin()[:, None]


def rotate(heads_THD: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of channels by its position's angle: float [T, H, D]."""
    cos, sin = rotation
    first, second = heads_THD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
