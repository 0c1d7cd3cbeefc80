"""The scorer ranks by votes untrained, learns what is planted, and its file is safe."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence import scorer as module
from sgrec_torchrec.evidence.gather import Evidence
from sgrec_torchrec.evidence.held_out import HeldOut
from sgrec_torchrec.evidence.scorer import (
    EvidenceScorer,
    fit_scorer,
    load_scorer,
    save_scorer,
)

SETTINGS = EvidenceConfig(hidden=8, num_epochs=4, batch_size=32)
F = 12
VOTE, PLANTED, CONSTANT = -4, 0, 5


def planted(num_rows: int, seed: int = 0, num_candidates: int = 6) -> HeldOut:
    """One feature is large at the target and small elsewhere; the last place unused."""
    generator = np.random.default_rng(seed)
    shape = (num_rows, num_candidates)
    item_EM = np.tile(np.arange(num_candidates, dtype=np.int32), (num_rows, 1))
    features_EMF = generator.random((*shape, F)).astype(np.float32)
    target_E = generator.integers(0, num_candidates - 1, num_rows)
    features_EMF[..., PLANTED] *= 0.3
    features_EMF[np.arange(num_rows), target_E, PLANTED] += 0.7
    features_EMF[..., CONSTANT] = 0.25
    item_EM[:, -1], features_EMF[:, -1] = -1, 0.0
    return HeldOut(
        item_EM=item_EM,
        features_EMF=features_EMF,
        target_place_E=target_E,
        num_rows=num_rows,
    )


def evidence_of(held_out: HeldOut) -> Evidence:
    return Evidence(item_EM=held_out.item_EM, features_EMF=held_out.features_EMF)


def target_probability(scorer: EvidenceScorer, held_out: HeldOut) -> np.ndarray:
    probability_EM = scorer.probability(evidence_of(held_out))
    return probability_EM[np.arange(len(probability_EM)), held_out.target_place_E]


def weights(scorer: EvidenceScorer) -> list[torch.Tensor]:
    return list(scorer.state_dict().values())


def order_by(values_EM: np.ndarray) -> list[list[int]]:
    return np.argsort(-values_EM, axis=1, kind="stable").tolist()


@pytest.mark.parametrize("num_rows", [0, 50])
def test_untrained_scorer_orders_by_votes(num_rows: int) -> None:
    never = dataclasses.replace(SETTINGS, num_epochs=0)
    scorer = fit_scorer(planted(num_rows), never, F, seed=0)
    asked = evidence_of(planted(20, seed=1))
    votes_EM = np.where(asked.item_EM >= 0, asked.features_EMF[..., VOTE], -1.0)
    assert order_by(scorer.probability(asked)) == order_by(votes_EM)


def test_without_a_row_training_leaves_the_order_of_votes() -> None:
    scorer = fit_scorer(planted(0), SETTINGS, F, seed=0)
    asked = evidence_of(planted(20, seed=1))
    votes_EM = np.where(asked.item_EM >= 0, asked.features_EMF[..., VOTE], -1.0)
    assert order_by(scorer.probability(asked)) == order_by(votes_EM)


@pytest.mark.parametrize("compared", [2, 32])
def test_training_finds_the_planted_feature(
    monkeypatch: pytest.MonkeyPatch, compared: int
) -> None:
    monkeypatch.setattr(module, "COMPARED", compared)
    train, test = planted(400), planted(100, seed=1)
    settings = dataclasses.replace(SETTINGS, num_epochs=12, lr=0.02)
    never = dataclasses.replace(settings, num_epochs=0)
    before = target_probability(fit_scorer(train, never, F, seed=0), test)
    after = target_probability(fit_scorer(train, settings, F, seed=0), test)
    # Votes say nothing of which of the five is the target: no better than chance.
    assert -np.log(before).mean() > np.log(5) - 0.1
    assert -np.log(after).mean() < 0.2
    assert after.mean() > 0.8


def test_a_step_compares_each_target_with_others_of_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "COMPARED", 4)
    held_out = planted(40)
    inputs = torch.from_numpy(held_out.features_EMF)
    rows = module._Rows(
        input_EMF=inputs,
        is_real_EM=torch.from_numpy(held_out.item_EM >= 0),
        target_place_E=torch.from_numpy(held_out.target_place_E),
    )
    chosen_B = torch.arange(5, 25)
    target_B = rows.target_place_E[chosen_B]
    input_BCF, is_real_BC, place_B = module._drawn(rows, chosen_B)
    assert input_BCF.shape == (20, 4, F)
    assert not place_B.any()
    assert is_real_BC[:, 0].all()
    assert torch.equal(input_BCF[:, 0], inputs[chosen_B, target_B])
    # Real ones are real candidates of the row, and not the target once more.
    for row in range(20):
        candidates = inputs[chosen_B[row], :-1].tolist()
        own = inputs[chosen_B[row], target_B[row]].tolist()
        for other in input_BCF[row, 1:][is_real_BC[row, 1:]].tolist():
            assert other in candidates
            assert other != own
    assert 0 < (~is_real_BC).sum() < 40


def test_rows_of_few_candidates_are_compared_whole() -> None:
    held_out = planted(8)
    rows = module._Rows(
        input_EMF=torch.from_numpy(held_out.features_EMF),
        is_real_EM=torch.from_numpy(held_out.item_EM >= 0),
        target_place_E=torch.from_numpy(held_out.target_place_E),
    )
    for whole, drawn in zip(rows, module._drawn(rows, torch.arange(8)), strict=True):
        assert torch.equal(whole, drawn)


def test_training_is_deterministic_in_the_seed() -> None:
    train = planted(100)
    first, again, other = (fit_scorer(train, SETTINGS, F, seed) for seed in (3, 3, 4))
    for one, two in zip(weights(first), weights(again), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_training_neither_reads_nor_moves_the_global_generator() -> None:
    train = planted(100)
    first = fit_scorer(train, SETTINGS, F, seed=3)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    second = fit_scorer(train, SETTINGS, F, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.mix.weight, second.mix.weight)


def test_rows_sum_to_one_or_have_no_candidate() -> None:
    scorer = fit_scorer(planted(100), SETTINGS, F, seed=0)
    asked = planted(30, seed=1)
    asked.item_EM[7], asked.features_EMF[7] = -1, 0.0
    probability_EM = scorer.probability(evidence_of(asked))
    assert probability_EM.dtype == np.float32
    expected = np.ones(30)
    expected[7] = 0.0
    np.testing.assert_allclose(probability_EM.sum(axis=1), expected, rtol=1e-5)
    assert not probability_EM[asked.item_EM < 0].any()


def test_probability_of_no_rows_is_empty() -> None:
    scorer = EvidenceScorer(F, 8)
    assert scorer.probability(evidence_of(planted(0))).shape == (0, 6)


def test_dropout_plays_no_part_in_answers() -> None:
    heavy = dataclasses.replace(SETTINGS, dropout=0.9)
    scorer = fit_scorer(planted(100), heavy, F, seed=0)
    assert scorer.narrow.weight.abs().max() > 0
    scorer.train()
    asked = evidence_of(planted(30, seed=1))
    first, second = scorer.probability(asked), scorer.probability(asked)
    np.testing.assert_array_equal(first, second)


def test_feature_that_never_varied_changes_nothing() -> None:
    scorer = fit_scorer(planted(100), SETTINGS, F, seed=0)
    asked = planted(30, seed=1)
    before = scorer.probability(evidence_of(asked))
    asked.features_EMF[:, ::2, CONSTANT] = 9.0
    np.testing.assert_array_equal(scorer.probability(evidence_of(asked)), before)
    asked.features_EMF[:, ::2, PLANTED] = 9.0
    assert not np.allclose(scorer.probability(evidence_of(asked)), before)


def test_input_is_standardised_over_real_candidates() -> None:
    train = planted(60)
    scorer = fit_scorer(train, dataclasses.replace(SETTINGS, num_epochs=0), F, seed=0)
    known = train.features_EMF[train.item_EM >= 0].astype(np.float64)
    logs = np.log(1 + 4 * known / known.mean(axis=0))
    standard = (logs - logs.mean(axis=0))[:, VOTE] / logs.std(axis=0, ddof=1)[VOTE]
    logits_EM = np.full(train.item_EM.shape, -np.inf)
    logits_EM[train.item_EM >= 0] = standard
    expected = np.exp(logits_EM) / np.exp(logits_EM).sum(axis=1, keepdims=True)
    found = scorer.probability(evidence_of(train))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_scale_is_the_mean_of_what_is_not_zero() -> None:
    train = planted(2, num_candidates=3)
    train.features_EMF[:, :2, 1] = [[0.0, 2.0], [4.0, 0.0]]
    train.features_EMF[:, :2, 2] = 0.0
    scorer = EvidenceScorer(F, 8)
    scorer.set_scales(train)
    # (2 + 4) / 2, and 1 where a feature is nothing but zeros.
    assert scorer.scale_F[1:3].tolist() == [3.0, 1.0]


def test_saved_scorer_answers_alike(tmp_path: Path) -> None:
    scorer = fit_scorer(planted(100), SETTINGS, F, seed=0)
    path = tmp_path / "folder" / "scorer.safetensors"
    save_scorer(scorer, path)
    again = load_scorer(path, SETTINGS, F)
    assert not again.training
    asked = evidence_of(planted(30, seed=1))
    np.testing.assert_array_equal(again.probability(asked), scorer.probability(asked))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"s.safetensors is missing: fit the"):
        load_scorer(tmp_path / "s.safetensors", SETTINGS, F)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "s.safetensors"
    save_scorer(EvidenceScorer(F, 8), path)
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(ValueError, match=r"s.safetensors is damaged .*: fit it again"):
        load_scorer(path, SETTINGS, F)


def test_file_of_other_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_scorer(EvidenceScorer(F, 9), path)
    with pytest.raises(ValueError, match=r"s.safetensors is damaged"):
        load_scorer(path, SETTINGS, F)
    save_scorer(EvidenceScorer(F + 5, 8), path)
    with pytest.raises(ValueError, match=r"s.safetensors is damaged"):
        load_scorer(path, SETTINGS, F)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "s.safetensors"
    save_scorer(EvidenceScorer(F, 8), path)
    tensors = load_file(path)
    tensors["mix.bias"][3] = bad
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"holds weights that are not finite: fit it"):
        load_scorer(path, SETTINGS, F)


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    scorer = EvidenceScorer(F, 8)
    written = set()
    for number in range(12):
        path = tmp_path / f"{number}.safetensors"
        save_scorer(scorer, path)
        written.add(path.read_bytes())
    assert len(written) == 1
    load_scorer(path, SETTINGS, F)
