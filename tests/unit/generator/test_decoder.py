"""The code decoder: a proper distribution over the catalogue, by slow reference."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.generator.decoder import (
    CodeDecoder,
    constrained_log_softmax,
    item_logprob,
)
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie

DIM, WIDTH = 6, 10


def make(num_items: int, num_codes: int, num_levels: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    flat = generator.choice(num_codes**num_levels, num_items, replace=False)
    codes = np.stack(np.unravel_index(flat, [num_codes] * num_levels), axis=1)
    torch.manual_seed(seed)
    decoder = CodeDecoder(
        dim=DIM, width=WIDTH, num_levels=num_levels, num_codes=num_codes
    ).double()
    with torch.no_grad():
        for head in decoder.heads:
            head.weight.mul_(4)
    return decoder, PrefixTrie.build(codes.astype(np.int32), num_codes), codes


def rms_norm(row: Tensor, gain: Tensor) -> Tensor:
    return row / (row.square().mean() + 1e-6).sqrt() * gain


def code_scores(decoder: CodeDecoder, hidden: Tensor, prefix: list[int]) -> Tensor:
    """The level's network, written out for one user and one prefix."""
    level = len(prefix)
    state = decoder.project[level].weight @ hidden + decoder.project[level].bias
    for place, code in enumerate(prefix):
        row = place * decoder.num_codes + code
        state = state + decoder.prefix_codes[level - 1].weight[row]
    block = decoder.blocks[level]
    inner = block.expand.weight @ rms_norm(state, block.input_norm.weight)
    inner = inner + block.expand.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    state = state + block.contract.weight @ gelu + block.contract.bias
    normed = rms_norm(state, block.output_norm.weight)
    return decoder.heads[level].weight @ normed + decoder.heads[level].bias


def slow_logprob(decoder, codes: np.ndarray, hidden: Tensor, item: int) -> Tensor:
    """[L] of one item: softmax over the codes that some item continues with."""
    sids, sid = codes.tolist(), codes[item].tolist()
    parts = []
    for level, code in enumerate(sid):
        prefix = sid[:level]
        legal = sorted({one[level] for one in sids if one[:level] == prefix})
        scores = code_scores(decoder, hidden, prefix)[legal]
        parts.append(scores[legal.index(code)] - scores.logsumexp(0))
    return torch.stack(parts)


@pytest.mark.parametrize(("items", "codes", "levels"), [(25, 5, 3), (7, 9, 2)])
def test_item_logprob_equals_a_slow_reference(
    items: int, codes: int, levels: int
) -> None:
    decoder, trie, codes_NL = make(items, codes, levels)
    hidden_TD = torch.randn(4, DIM).double()
    context_S = torch.tensor([2, 0, 0, 3, 2, 2])
    item_S = torch.tensor([1, 0, items - 1, 4, 4, 1])
    ours = item_logprob(decoder, trie, hidden_TD, context_S, item_S)
    slow = [
        slow_logprob(decoder, codes_NL, hidden_TD[context], int(item))
        for context, item in zip(context_S, item_S, strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack(slow), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("items", "codes", "levels"), [(40, 5, 3), (125, 5, 3), (1, 4, 3), (1, 1, 2)]
)
def test_probabilities_of_the_catalogue_sum_to_one(
    items: int, codes: int, levels: int
) -> None:
    decoder, trie, _ = make(items, codes, levels)
    hidden_TD = torch.randn(3, DIM).double() * 3
    for context in range(3):
        logprob_NL = item_logprob(
            decoder,
            trie,
            hidden_TD,
            torch.full((items,), context),
            torch.arange(items),
        )
        total = logprob_NL.sum(1).exp().sum()
        torch.testing.assert_close(total, torch.ones_like(total))


def test_gradients_equal_those_of_the_slow_reference() -> None:
    decoder, trie, codes_NL = make(12, 4, 3)
    hidden_TD = torch.randn(2, DIM).double().requires_grad_()
    context_S, item_S = torch.tensor([0, 1, 1]), torch.tensor([3, 3, 11])
    parameters = [hidden_TD, *decoder.parameters()]
    ours = item_logprob(decoder, trie, hidden_TD, context_S, item_S).sum()
    slow = sum(
        slow_logprob(decoder, codes_NL, hidden_TD[context], int(item)).sum()
        for context, item in zip(context_S, item_S, strict=True)
    )
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(slow, parameters),
        rtol=1e-8,
        atol=1e-10,
    )


def test_illegal_codes_have_no_probability_and_pass_no_gradient() -> None:
    logits = torch.tensor([[1.0, 50.0, 2.0]], requires_grad=True)
    mask = torch.tensor([[0.0, -math.inf, 0.0]])
    logprob = constrained_log_softmax(logits, mask)
    # softmax over {1, 2}: 1 / (1 + e) and e / (1 + e)
    expected = [-math.log(1 + math.e), -math.inf, 1 - math.log(1 + math.e)]
    torch.testing.assert_close(logprob[0].tolist(), expected)
    logprob[0, 0].backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad.isfinite().all()
