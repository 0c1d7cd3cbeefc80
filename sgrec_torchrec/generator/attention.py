"""Causal attention over sequences that lie end to end, at no cost for padding.

Letters: T positions of all sequences, B sequences, H heads, D width of a head.
"""

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
        return _nested_attention(query_THD, key_THD, value_THD, groups.offsets_B1)
    pieces = []
    for index_BP in groups.padded_index:
        query, key, value = (
            tensor[index_BP].transpose(1, 2)
            for tensor in (query_THD, key_THD, value_THD)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        pieces.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces)[groups.padded_place_T]


def _nested_attention(
    query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, offsets_B1: Tensor
) -> Tensor:
    """The same by the fused variable-length kernels of a GPU."""
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(tensor, offsets_B1).transpose(1, 2)
        for tensor in (query_THD, key_THD, value_THD)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
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
        if offsets_B1.is_cuda:
            return
        length_B = offsets_B1.diff()
        sorted_B, order_B = length_B.sort(descending=True)
        place_B = torch.empty_like(order_B)
        first_place, start = 0, 0
        for end in _group_ends(sorted_B.tolist()):
            members = order_B[start:end]
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
