"""Training Part A: what is learned from, that it learns, and what stays as it was."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.judge.ask.aspects import read_answer
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.token_tree import IGNORED, TokenTree
from sgrec_torchrec.judge.learn import train_aspects as module
from sgrec_torchrec.judge.learn.group_reward import chance_reward
from sgrec_torchrec.judge.learn.labels import LabelledCase
from sgrec_torchrec.judge.learn.train_aspects import (
    linear_names,
    reinforce,
    supervise,
    supervised_tree,
    train_cases,
    with_lora,
    written_tree,
)


@pytest.fixture
def adapted(load_tiny, fast_training) -> Callable[..., tuple[Any, Chat]]:
    """adapted(**changes) -> the tiny model with a fresh LoRA, and its chat."""

    def make(**changes: Any) -> tuple[Any, Chat]:
        model, tokenizer = load_tiny()
        return with_lora(model, fast_training(**changes)), Chat.of(tokenizer)

    return make


def small(one: LabelledCase, count: int = 2) -> LabelledCase:
    """The case with its first candidates alone."""
    return dataclasses.replace(
        one,
        case=dataclasses.replace(one.case, items=one.case.items[:count]),
        levels_CA=one.levels_CA[:count],
        preferences=(),
    )


@pytest.fixture
def cases(labels: list[LabelledCase]) -> list[LabelledCase]:
    return [small(one) for one in labels if not one.is_held_out][:3]


def learned_texts(tree: TokenTree, chat: Chat) -> list[str]:
    """What the tree teaches, one text a run of labels."""
    texts, run = [], []
    for label in [*tree.label_T.tolist(), IGNORED]:
        if label != IGNORED:
            run.append(label)
        if run and label in (IGNORED, chat.tokenizer.eos_token_id):
            texts.append(chat.tokenizer.decode(run))
            run = []
    return texts


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {
        n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad
    }


def test_lora_sits_on_all_linear_maps_of_the_uppermost_layers(adapted, tiny) -> None:
    assert linear_names(tiny[0]) == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    ]
    model, _ = adapted()
    names = list(trained(model))
    assert len(names) == 2 * 7
    assert all("layers.1." in name and "lora_" in name for name in names)
    names = list(trained(adapted(trained_share=1.0)[0]))
    assert len(names) == 2 * 2 * 7


def test_a_fresh_lora_changes_no_answer(adapted, tiny) -> None:
    model, chat = adapted()
    ids = torch.tensor([chat.encode("Rate novelty.")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny[0](ids).logits)


def test_the_seed_alone_draws_the_lora(adapted) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = trained(adapted(seed=1)[0])
    # Loading draws nothing of a global generator, nor does the LoRA leave a trace.
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    torch.manual_seed(6)
    again, other = trained(adapted(seed=1)[0]), trained(adapted(seed=2)[0])
    for name, weight in first.items():
        torch.testing.assert_close(weight, again[name], rtol=0, atol=0)
    assert any((first[name] != other[name]).any() for name in first)


def test_supervised_tree_teaches_each_level_and_then_the_end(
    cases, reader, tiny
) -> None:
    chat = Chat.of(tiny[1])
    (one, *_) = cases
    texts = learned_texts(supervised_tree(one, reader, chat), chat)
    assert texts == [
        f"{level}<|im_end|>" for level in one.levels_CA.reshape(-1).tolist()
    ]


def test_written_tree_teaches_an_answer_of_the_schema(cases, reader, tiny) -> None:
    chat = Chat.of(tiny[1])
    (one, *_) = cases
    for place in range(2):
        (text,) = learned_texts(written_tree(one, place, reader, chat), chat)
        answer = read_answer(text.removesuffix("<|im_end|>"), reader.aspects)
        assert answer == one.answer(place)


def test_supervision_lowers_the_loss_and_touches_the_lora_alone(
    adapted, cases, reader, fast_training
) -> None:
    model, chat = adapted()
    frozen = {
        name: weight.clone()
        for name, weight in model.named_parameters()
        if not weight.requires_grad
    }
    settings = fast_training(sft_epochs=20.0, sft_lr=2e-2)
    log = supervise(model, chat, cases[:2], reader, settings)
    assert len(log) == 20  # 20 epochs of 2 cases, 2 an update
    assert log[0]["loss"] > 5  # near ln 49152 = 10.8: it knows nothing
    assert log[-1]["loss"] < 0.75 * log[0]["loss"]
    assert all(math.isfinite(value) for one in log for value in one.values())
    assert not model.training
    for name, weight in model.named_parameters():
        if name in frozen:
            torch.testing.assert_close(weight, frozen[name], rtol=0, atol=0)


def test_every_fourth_case_also_teaches_a_written_answer(
    adapted, cases, reader, fast_training
) -> None:
    settings = fast_training(sft_epochs=4.0, batch_size=1)
    log = supervise(*adapted(), cases[:2], reader, settings)
    assert [n for n, one in enumerate(log) if "written_loss" in one] == [0, 4]


@pytest.mark.parametrize(("bound", "num_updates"), [(3, 3), (9, 4), (None, 4)])
def test_updates_of_supervision_are_bounded(
    adapted, cases, reader, fast_training, bound: int | None, num_updates: int
) -> None:
    # 4 epochs of 2 cases, 2 an update: 4 updates.
    settings = fast_training(sft_epochs=4.0, sft_updates=bound)
    assert len(supervise(*adapted(), cases[:2], reader, settings)) == num_updates


def test_labels_without_evidence_teach_no_written_answer(
    adapted, cases, reader, fast_training
) -> None:
    # Else the judge learned to write sentences that its own schema refuses.
    silent = [dataclasses.replace(one, evidence=(("",) * 4,) * 2) for one in cases[:1]]
    log = supervise(*adapted(), silent, reader, fast_training(batch_size=1))
    assert "written_loss" not in log[0]


def test_same_seed_same_training(adapted, cases, reader, fast_training) -> None:
    settings = fast_training(sft_epochs=2.0)
    logs, weights = [], []
    for _ in range(2):
        model, chat = adapted()
        logs.append(supervise(model, chat, cases, reader, settings))
        weights.append(trained(model))
    assert logs[0] == logs[1]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=0)
    other = dataclasses.replace(settings, seed=1)
    assert supervise(*adapted(), cases, reader, other) != logs[0]


@pytest.fixture
def supervised(adapted, tmp_path: Path) -> tuple[Any, Chat, Path]:
    """A model, its chat, and the folder of the adapter it starts from."""
    model, chat = adapted(lora_rank=8)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(
                weight, std=0.05, generator=torch.Generator().manual_seed(1)
            )
    model.save_pretrained(tmp_path / "sft")
    return model, chat, tmp_path / "sft"


def test_grpo_starts_at_the_supervised_policy_and_raises_the_reward(
    supervised, cases, reader: CaseReader, fast_training
) -> None:
    model, chat, folder = supervised
    before = trained(model)
    settings = fast_training(grpo_steps=25, grpo_lr=2e-2, num_draws=32)
    log = reinforce(model, chat, cases[:2], reader, settings, folder)
    assert len(log) == 25
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["kl"] > 1e-3
    assert sum(one["reward"] for one in log[-5:]) / 5 > log[0]["reward"] + 0.2
    assert 0 < log[0]["live"] <= 1
    after = dict(model.named_parameters())
    assert any((after[name] != weight).any() for name, weight in before.items())
    for name, weight in before.items():  # the reference stays where it was
        kept = after[name.replace(".default.", ".reference.")]
        torch.testing.assert_close(kept, weight, rtol=0, atol=0)
        assert not kept.requires_grad


def test_grpo_asks_for_the_exact_level_first(
    supervised, cases, reader, fast_training, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chat, folder = supervised
    seen = []

    def spied(logits_QS, reference_QS, reward, **options):
        label = torch.from_numpy(cases[0].levels_CA.reshape(-1).astype("int64")) - 1
        seen.append(reward(label[:, None]))
        return real(logits_QS, reference_QS, reward, **options)

    real = module.group_policy_loss
    monkeypatch.setattr(module, "group_policy_loss", spied)
    reinforce(
        model,
        chat,
        cases[:1],
        reader,
        fast_training(grpo_steps=1, batch_size=1),
        folder,
    )
    label_CA = torch.from_numpy(cases[0].levels_CA).long() - 1
    chance_AS = chance_reward(label_CA, 5)
    chance_Q = torch.stack(
        [chance_AS[a, s] for row in label_CA for a, s in enumerate(row)]
    )
    # 1 for the exact level and 1 for being close, less what that level earns anywhere.
    torch.testing.assert_close(seen[0].squeeze(1), 2.0 - chance_Q)


def test_bfloat16_moves_the_weights_about_as_float32_does(
    adapted, cases, reader, fast_training
) -> None:
    losses = []
    for bf16 in (False, True):
        model, chat = adapted()
        log = supervise(model, chat, cases, reader, fast_training(bf16=bf16))
        losses.append([one["loss"] for one in log])
        assert all(w.dtype == torch.float32 for w in model.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_without_cases_there_is_nothing_to_learn(adapted, reader) -> None:
    with pytest.raises(ValueError, match="no cases to learn from"):
        supervise(*adapted(), [], reader, JudgeConfig())


def test_each_epoch_visits_every_case_once(cases, fast_training) -> None:
    weight = torch.nn.Linear(1, 1)
    seen: list[tuple[int, int]] = []

    def loss_of(one: LabelledCase, turn: int) -> tuple[torch.Tensor, dict[str, float]]:
        seen.append((cases.index(one), turn))
        return weight(torch.ones(1)).sum(), {"turn": float(turn)}

    settings = fast_training(batch_size=3)
    log = train_cases(weight, cases, loss_of, 4, 0.1, settings, "test")
    assert [turn for _, turn in seen] == list(range(12))
    epochs = [[case for case, _ in seen[n : n + 3]] for n in range(0, 12, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew
    assert [one["turn"] for one in log] == [1, 4, 7, 10]  # means of three turns


def steps_of(cases: list[LabelledCase], num_updates: int, settings: Any) -> list[float]:
    """How far a weight of constant gradient goes at each update, at rate .1."""
    weight = torch.nn.Linear(1, 1, bias=False)
    places = []

    def loss_of(one: LabelledCase, turn: int) -> tuple[torch.Tensor, dict[str, float]]:
        places.append(float(weight.weight.detach()))
        return weight(torch.ones(1)).sum(), {}

    train_cases(weight, cases, loss_of, num_updates, 0.1, settings, "test")
    return [a - b for a, b in itertools.pairwise(places)]


def test_learning_rate_falls_to_zero_along_a_cosine(cases, fast_training) -> None:
    steps = steps_of(cases, 4, fast_training(batch_size=1))
    # AdamW moves by the rate where the gradient never changes.
    expected = [0.1 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(3)]
    assert steps == pytest.approx(expected, rel=1e-3)


def test_learning_rate_rises_first_in_a_longer_training(cases, fast_training) -> None:
    steps = steps_of(cases, 60, fast_training(batch_size=1))
    # 3 of 60 updates: a quarter, a half, three quarters of the rate, nearly all of it.
    assert steps[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1], rel=0.02)
