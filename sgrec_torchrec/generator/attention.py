"""Causal attention over sequences that lie end to end, at no cost for padding.

Letters: T positions of all sequences, B sequences, P past positions of one sequence, M
past and new ones of the longest, N new ones, Y layers, H heads, D width of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A group of sequences is padded to its longest: a new group starts where that would
# waste more than this share, so the padded work stays within 1 / (1 - share).
MAX_PADDING_SHARE = 0.25


def jagged_causal_attention(
    query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, groups: "AttentionGroups"
) -> Tensor:
    """softmax(q k' / sqrt(D)) v within each sequence, over earlier positions and self.

    Args:
        query_THD: float [T, H, D], positions of all sequences end to end.
        key_THD: float [T, H, D].
        value_THD: float [T, H, D].
        groups: the layout of the batch, made once per batch.

    Returns:
        float [T, H, D].
    """
    if query_THD.is_cuda:
        offsets_B1 = groups.offsets_B1
        return _nested_attention(
            (query_THD, offsets_B1),
            (key_THD, offsets_B1),
            (value_THD, offsets_B1),
            is_causal=True,
        )
    pieces = []
    for index_BP in groups.padded_index:
        query, key, value = (
            tensor[index_BP].transpose(1, 2)
            for tensor in (query_THD, key_THD, value_THD)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        pieces.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces)[groups.padded_place_T]


def last_position_attention(
    query_BHD: Tensor, key_THD: Tensor, value_THD: Tensor, groups: "AttentionGroups"
) -> Tensor:
    """``jagged_causal_attention`` at the last position of each sequence alone.

    Args:
        query_BHD: float [B, H, D], of the last positions.
        key_THD: float [T, H, D], of all positions.
        value_THD: float [T, H, D].
        groups: the layout of the batch.

    Returns:
        float [B, H, D].
    """
    if query_BHD.is_cuda:
        one_B1 = torch.arange(len(query_BHD) + 1, device=query_BHD.device)
        return _nested_attention(
            (query_BHD, one_B1),
            (key_THD, groups.offsets_B1),
            (value_THD, groups.offsets_B1),
            is_causal=False,
        )
    mixed_BHD = torch.empty_like(query_BHD)
    length_B = groups.offsets_B1.diff()
    for members, index_BP in zip(groups.members, groups.padded_index, strict=True):
        column_P = torch.arange(index_BP.shape[1])
        is_real_B11P = (column_P < length_B[members, None])[:, None, None]
        mixed = F.scaled_dot_product_attention(
            query_BHD[members, :, None],
            key_THD[index_BP].transpose(1, 2),
            value_THD[index_BP].transpose(1, 2),
            attn_mask=is_real_B11P,
        )
        mixed_BHD[members] = mixed.squeeze(2)
    return mixed_BHD


def _nested_attention(*parts: tuple[Tensor, Tensor], is_causal: bool) -> Tensor:
    """The same by the fused variable-length kernels of a GPU.

    Args:
        parts: query, key and value, float [T, H, D], each with its offsets [B + 1].
    """
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(tensor, offsets_B1).transpose(1, 2)
        for tensor, offsets_B1 in parts
    )
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    return mixed.transpose(1, 2).contiguous().values()


class AttentionGroups:
    """Sequences of similar length side by side, as indices into the T positions.

    A padded place beyond a sequence's end repeats its last position: it stands after
    every real position, so the causal mask hides it from all of them.
    """

    def __init__(self, offsets_B1: Tensor) -> None:
        """Lay out a batch of B >= 1 sequences, each of at least one position."""
        self.offsets_B1 = offsets_B1
        self.padded_index: list[Tensor] = []
        self.members: list[Tensor] = []
        if offsets_B1.is_cuda:
            return
        length_B = offsets_B1.diff()
        sorted_B, order_B = length_B.sort(descending=True)
        place_B = torch.empty_like(order_B)
        first_place, start = 0, 0
        for end in _group_ends(sorted_B.tolist()):
            members = order_B[start:end]
            self.members.append(members)
            width = int(sorted_B[start])
            column = torch.arange(width)
            last = (length_B[members] - 1)[:, None]
            self.padded_index.append(
                offsets_B1[members][:, None] + torch.minimum(column, last)
            )
            place_B[members] = first_place + torch.arange(end - start) * width
            first_place += (end - start) * width
            start = end
        shift_B = place_B - offsets_B1[:-1]
        num_positions = int(offsets_B1[-1])
        self.padded_place_T = torch.arange(num_positions) + shift_B.repeat_interleave(
            length_B, output_size=num_positions
        )


def _group_ends(lengths: list[int]) -> list[int]:
    """Ends of the groups of a falling list of lengths."""
    ends, start, real = [], 0, 0
    for place, length in enumerate(lengths):
        padded = (place + 1 - start) * lengths[start]
        if padded - real - length > MAX_PADDING_SHARE * padded:
            ends.append(place)
            start, real = place, 0
        real += length
    return [*ends, len(lengths)]


class PaddedPast:
    """Keys and values of sequences that go on, with room for their new positions."""

    def __init__(self, past_B: Sequence[Tensor], offsets_B1: Tensor) -> None:
        """``past_B``: float [Y, P, 2, H, D] each; ``offsets_B1``: of new positions."""
        device = offsets_B1.device
        new_B = offsets_B1.diff()
        self.old_lengths = [past.shape[1] for past in past_B]
        old_B = torch.tensor(self.old_lengths, device=device)
        self.total_lengths = (old_B + new_B).tolist()
        num_layers, _, _, *head_shape = past_B[0].shape
        shape = (num_layers, len(past_B), max(self.total_lengths), 2, *head_shape)
        self.key_value = past_B[0].new_zeros(shape)
        for row, past in enumerate(past_B):
            self.key_value[:, row, : past.shape[1]] = past
        num_new = int(offsets_B1[-1])
        self.row_T = torch.arange(len(past_B), device=device).repeat_interleave(
            new_B, output_size=num_new
        )
        self.new_T = torch.arange(num_new, device=device) - offsets_B1[self.row_T]
        self.place_T = old_B[self.row_T] + self.new_T
        width = int(new_B.max())
        reach_BN = old_B[:, None] + torch.arange(width, device=device)
        column_M = torch.arange(max(self.total_lengths), device=device)
        self.is_seen_B1NM = (column_M <= reach_BN[..., None])[:, None]

    def attend(
        self, layer: int, query_THD: Tensor, key_THD: Tensor, value_THD: Tensor
    ) -> Tensor:
        """float [T, H, D]: attention of new positions over past and new ones.

        Keeps the new keys and values of this layer.
        """
        held = self.key_value[layer]
        held[self.row_T, self.place_T] = torch.stack((key_THD, value_THD), dim=1)
        num_rows, width = len(held), self.is_seen_B1NM.shape[2]
        query = query_THD.new_zeros((num_rows, width, *query_THD.shape[1:]))
        query[self.row_T, self.new_T] = query_THD
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            held[:, :, 0].transpose(1, 2),
            held[:, :, 1].transpose(1, 2),
            attn_mask=self.is_seen_B1NM,
        )
        return mixed.transpose(1, 2)[self.row_T, self.new_T]

    def grown(self) -> list[Tensor]:
        """Per sequence, float [Y, P + its new positions, 2, H, D]."""
        return [
            self.key_value[:, row, :length].clone()
            for row, length in enumerate(self.total_lengths)
        ]
