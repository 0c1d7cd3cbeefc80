"""Same answers however the work is cut, and what it cost."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.judge.ask.aspects import ASPECTS, LEVELS, answer_schema, read_answer
from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.judge.ask.token_tree import TreeBatch
from sgrec_torchrec.judge.backends import transformers_backend as module
from sgrec_torchrec.judge.backends.transformers_backend import (
    TransformersBackend,
    level_logits,
)


@pytest.fixture
def backend(tiny) -> Callable[..., TransformersBackend]:
    """backend(**options): over the tiny model, nothing used yet."""
    return lambda **options: TransformersBackend(*tiny, "tiny", **options)


@pytest.fixture
def prompts(hand_prompt) -> list[UserPrompt]:
    """Of 2, 20 and 1 candidates, the longest in the middle."""
    many = tuple(f"Candidate: {'x' * (n % 7)} {n}\n" for n in range(20))
    return [
        hand_prompt(),
        hand_prompt("History:" + " a lamp," * 9 + "\n", many),
        hand_prompt("-\n", ("",)),
    ]


def num_tokens(tiny: tuple[Any, Any], prompts: list[UserPrompt]) -> int:
    """Of all prompts in full."""
    chat = module.Chat.of(tiny[1])
    return sum(len(chat.encode(t)) for p in prompts for t in chat.full_texts(p))


@pytest.mark.parametrize("has_bias", [False, True])
def test_level_logits_are_the_models_own(load_tiny, hand_prompt, has_bias) -> None:
    model, tokenizer = load_tiny()
    if has_bias:
        bias = torch.linspace(-1, 1, model.config.vocab_size)
        model.get_output_embeddings().bias = torch.nn.Parameter(bias)
    chat = module.Chat.of(tokenizer)
    pairs = [chat.question_tree(p) for p in (hand_prompt(), hand_prompt("-\n"))]
    batch = TreeBatch.of([tree for tree, _ in pairs], chat.padding)
    tokens = chat.level_tokens(LEVELS)
    with torch.no_grad():
        found = level_logits(model, batch, [ends for _, ends in pairs], tokens)
        whole_BTV = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
        ).logits
    for row, (_, ends) in enumerate(pairs):
        torch.testing.assert_close(found[row], whole_BTV[row, ends][:, tokens])


def test_shares_or_not_the_answers_are_the_same(tiny, backend, prompts) -> None:
    tree, alone = backend(), backend(shares=False)
    found, expected = (one.rate(prompts, LEVELS) for one in (tree, alone))
    assert [one.shape for one in found] == [(2, 2, 5), (20, 2, 5), (1, 2, 5)]
    for ours_CQS, theirs_CQS in zip(found, expected, strict=True):
        assert ours_CQS.dtype == np.float32
        np.testing.assert_allclose(ours_CQS.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(ours_CQS, theirs_CQS, rtol=0, atol=1e-5)
    assert alone.usage.prompt_tokens == num_tokens(tiny, prompts)
    assert tree.usage.prompt_tokens == alone.usage.prompt_tokens
    assert alone.usage.cached_tokens == 0
    assert 0.5 < tree.usage.cached_tokens / tree.usage.prompt_tokens < 1
    assert tree.usage.seconds > 0


def test_bfloat16_answers_nearly_the_same(backend, prompts) -> None:
    exact, half = backend(), backend(bf16=True)
    assert half.name == "transformers, bfloat16"
    gaps = [
        np.abs(ours - theirs).max()
        for ours, theirs in zip(
            half.rate(prompts, LEVELS), exact.rate(prompts, LEVELS), strict=True
        )
    ]
    assert 0 < max(gaps) < 0.05


@pytest.mark.parametrize(("max_tokens", "max_candidates"), [(1, 3), (300, 16)])
def test_answers_do_not_depend_on_how_the_work_is_cut(
    backend, prompts, monkeypatch: pytest.MonkeyPatch, max_tokens, max_candidates
) -> None:
    expected = backend().rate(prompts, LEVELS)
    monkeypatch.setattr(module, "CPU_TOKENS", max_tokens)
    monkeypatch.setattr(module, "MAX_CANDIDATES", max_candidates)
    for ours, theirs in zip(backend().rate(prompts, LEVELS), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_no_forward_is_larger_than_allowed(
    backend, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(module, "CPU_TOKENS", 400)
    monkeypatch.setattr(module, "MAX_CANDIDATES", 4)

    def counted(model, batch, *rest):
        sizes.append(batch.input_ids.shape)
        return level_logits(model, batch, *rest)

    monkeypatch.setattr(module, "level_logits", counted)
    backend().rate(prompts * 3, LEVELS)
    assert sum(rows for rows, _ in sizes) == 3 * (1 + 5 + 1)
    assert max(rows for rows, _ in sizes) > 1
    assert all(rows * length <= 400 for rows, length in sizes if rows > 1)


def test_usage_grows_and_no_prompt_costs_nothing(tiny, backend, prompts) -> None:
    one = backend()
    assert one.rate([], LEVELS) == []
    assert one.usage.prompt_tokens == 0
    one.rate(prompts[:1], LEVELS)
    one.rate(prompts[:1], LEVELS)
    assert one.usage.prompt_tokens == 2 * num_tokens(tiny, prompts[:1])


def test_written_answers_keep_to_the_grammar_and_the_order(
    tiny, backend, hand_prompt
) -> None:
    (aspect,) = aspects = ASPECTS[:1]
    long, short = "Candidate:" + " a desk," * 30 + "\n", "Candidate: a rug\n"
    questions = ("Answer with JSON.",)
    both = hand_prompt(candidates=(long, short), questions=questions)
    one = backend()
    schema = answer_schema(aspects)
    (texts,) = one.write([both], schema, 120)
    for text in texts:
        answer = json.loads(text)
        assert set(answer[aspect.name]) == {"evidence", "level"}
        assert 1 <= read_answer(text, aspects).levels[0] <= len(LEVELS)
    assert one.usage.prompt_tokens == num_tokens(tiny, [both])
    assert 0 < one.usage.written_tokens <= 240
    assert one.usage.cached_tokens == 0
    for text, candidate in zip(texts, (long, short), strict=True):
        alone = hand_prompt(candidates=(candidate,), questions=questions)
        assert one.write([alone], schema, 120) == [[text]]
    assert texts[0] != texts[1]


def test_an_answer_that_is_cut_off_comes_back_as_it_is(backend, hand_prompt) -> None:
    schema = answer_schema(ASPECTS)
    ((text,),) = backend().write(
        [hand_prompt(candidates=("",), questions=("Answer.",))], schema, 5
    )
    with pytest.raises(ValueError, match="not JSON"):
        read_answer(text, ASPECTS)
