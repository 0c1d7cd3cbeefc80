"""Jagged attention against plain attention of each sequence alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgrec_torchrec.generator.attention import (
    MAX_PADDING_SHARE,
    AttentionGroups,
    jagged_causal_attention,
    last_position_attention,
)

LENGTHS = st.lists(st.integers(1, 17), min_size=1, max_size=12)


def offsets_of(lengths: list[int]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0))


def heads(num_positions: int, *, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_positions, 2, 4, generator=generator, dtype=torch.float64)
        for _ in range(3)
    ]


def each_sequence_alone(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor):
    """The definition, one position at a time."""
    rows = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for place in range(start, end):
            scores = torch.einsum("hd,shd->hs", query[place], key[start : place + 1])
            share = torch.softmax(scores / query.shape[-1] ** 0.5, dim=-1)
            rows.append(torch.einsum("hs,shd->hd", share, value[start : place + 1]))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(LENGTHS)
def test_attention_and_gradients_equal_each_sequence_alone(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    inputs = [one.requires_grad_() for one in heads(sum(lengths), seed=0)]
    weight = heads(sum(lengths), seed=1)[0]
    ours = jagged_causal_attention(*inputs, AttentionGroups(offsets))
    reference = each_sequence_alone(*inputs, offsets)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)
    ours_gradient = torch.autograd.grad((ours * weight).sum(), inputs)
    reference_gradient = torch.autograd.grad((reference * weight).sum(), inputs)
    torch.testing.assert_close(ours_gradient, reference_gradient, rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(LENGTHS)
def test_attention_and_gradients_at_the_ends_are_those_of_the_whole(
    lengths: list[int],
) -> None:
    offsets = offsets_of(lengths)
    inputs = [one.requires_grad_() for one in heads(sum(lengths), seed=0)]
    query, key, value = inputs
    last = offsets[1:] - 1
    weight = heads(len(lengths), seed=1)[0]
    ours = last_position_attention(query[last], key, value, AttentionGroups(offsets))
    reference = each_sequence_alone(query, key, value, offsets)[last]
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)
    ours_gradient = torch.autograd.grad((ours * weight).sum(), inputs)
    reference_gradient = torch.autograd.grad((reference * weight).sum(), inputs)
    torch.testing.assert_close(ours_gradient, reference_gradient, rtol=1e-9, atol=1e-11)


def test_one_sequence_never_reaches_another() -> None:
    lengths = [1, 9, 3, 3, 17, 2]
    offsets = offsets_of(lengths)
    groups = AttentionGroups(offsets)
    plain = heads(sum(lengths), seed=0)
    before = jagged_causal_attention(*plain, groups)
    for place in range(len(lengths)):
        rows = slice(int(offsets[place]), int(offsets[place + 1]))
        poisoned = [one.clone() for one in plain]
        for one in poisoned:
            one[rows] = torch.nan
        after = jagged_causal_attention(*poisoned, groups)
        others = torch.ones(sum(lengths), dtype=torch.bool)
        others[rows] = False
        assert torch.equal(after[others], before[others])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_layout_finds_every_position_and_bounds_the_padding(lengths: list[int]) -> None:
    offsets = offsets_of(lengths)
    groups = AttentionGroups(offsets)
    padded = torch.cat([index.flatten() for index in groups.padded_index])
    assert torch.equal(padded[groups.padded_place_T], torch.arange(sum(lengths)))
    assert len(padded) <= sum(lengths) / (1 - MAX_PADDING_SHARE)
    sequence_T = torch.repeat_interleave(torch.tensor(lengths))
    for index_BP in groups.padded_index:
        assert (sequence_T[index_BP] == sequence_T[index_BP[:, :1]]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fused_kernels_of_a_gpu_agree() -> None:
    lengths = [1, 9, 3, 3, 17, 2]
    offsets = offsets_of(lengths).cuda()
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(35, 2, 16, generator=generator) for _ in range(3)]
    groups = AttentionGroups(offsets)
    ours = jagged_causal_attention(*(one.cuda() for one in plain), groups)
    reference = each_sequence_alone(*(one.double() for one in plain), offsets.cpu())
    torch.testing.assert_close(ours.cpu().double(), reference, rtol=2e-3, atol=2e-3)
    query, key, value = (one.cuda() for one in plain)
    last = offsets[1:] - 1
    ends = last_position_attention(query[last], key, value, groups)
    torch.testing.assert_close(
        ends.cpu().double(), reference[last.cpu()], rtol=2e-3, atol=2e-3
    )
