"""From labels to a judge: what is left on disk, what is not done again, the report."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.judge.backends.language_model import load_model
from sgrec_torchrec.judge.judge_files import open_judge
from sgrec_torchrec.judge.learn import train_judge as module
from sgrec_torchrec.judge.learn.train_judge import train_judge
from sgrec_torchrec.judge.learn.user_weights import weigher

STAGES = ["before", "sft", "grpo", "grpo + weights"]


@pytest.fixture
def settings(tiny_folder: Path, fast_training) -> JudgeConfig:
    """As ``tiny_judge`` was trained."""
    return fast_training(
        model=str(tiny_folder),
        weights_passes=2,
        max_held_out=5,
        max_weight_cases=12,
    )


@pytest.fixture
def copy(tiny_judge: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_judge, tmp_path / "judge"))


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = without_seal(
        json.loads((folder / "report.json").read_text())
    )
    return found


def test_training_leaves_the_files_it_promises(tiny_judge: Path) -> None:
    names = {path.relative_to(tiny_judge).as_posix() for path in tiny_judge.rglob("*")}
    assert names >= {
        *("judge.json", "report.json", "aggregator.safetensors"),
        *("sft/adapter_model.safetensors", "sft/log.json"),
        *("grpo/adapter_model.safetensors", "grpo/log.json"),
        *(f"{stage}/probabilities.safetensors" for stage in STAGES[:3]),
        *("model/model.safetensors", "model/tokenizer.json", "model/config.json"),
    }
    assert not [name for name in names if name.endswith((".tmp", ".bin", ".pkl"))]
    assert open_judge(tiny_judge).form == "network"


def test_inputs_are_noted_as_before_their_settings_were_in_the_run(
    tiny_judge: Path, tiny_folder: Path
) -> None:
    """Else a judge that an earlier release began could not be gone on with."""
    inputs = json.loads((tiny_judge / "inputs.json").read_text())
    assert inputs["settings"] == {
        "model": str(tiny_folder),
        "aspects": {
            "lora_rank": 2,
            "trained_share": 1 / 3,
            "batch_size": 2,
            "sft_epochs": 0.0,
            "sft_updates": None,
            "sft_lr": 2e-3,
            "grpo_steps": 2,
            "grpo_lr": 1e-4,
            "num_draws": 8,
            "kl_weight": 0.05,
            "bf16": False,
            "seed": 0,
        },
        "max_held_out": 5,
        "max_weight_cases": 12,
    }


def test_report_shows_what_each_stage_adds(tiny_judge: Path, reader) -> None:
    report = report_of(tiny_judge)
    assert sorted(report["stages"]) == sorted(STAGES)
    for figures in report["stages"].values():
        assert 0 <= figures["point_accuracy"] <= 1
        assert 0 <= figures["pair_auc"]["all"] <= 1
        assert set(figures["by_aspect"]) == {a.name for a in reader.aspects}
    assert set(report["baselines"]) == {"place"}
    assert sum(report["mean_weights"].values()) == pytest.approx(1, abs=1e-3)
    assert [len(report["logs"][name]) for name in ("sft", "grpo", "weights")] == [
        *(1, 2, 2)
    ]


def test_the_merged_model_answers_as_the_last_stage_did(
    tiny_judge: Path, labels, reader
) -> None:
    from sgrec_torchrec.judge.ask.aspects import LEVELS
    from sgrec_torchrec.judge.ask.prompt import rating
    from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend

    # The judge was measured on 5 held-out cases, spread evenly; the first is the first.
    first = next(one for one in labels if one.is_held_out)
    prompt = reader.prompt(first.case, rating(reader.aspects))
    model, tokenizer = load_model(str(tiny_judge / "model"))
    (found,) = TransformersBackend(model, tokenizer, "-").rate([prompt], LEVELS)
    said = {
        stage: module._load(tiny_judge / stage / "probabilities.safetensors")[0]
        for stage in STAGES[:3]
    }
    np.testing.assert_allclose(found, said["grpo"], atol=1e-5)
    assert np.abs(said["sft"] - said["before"]).max() > 1e-4
    assert np.abs(said["grpo"] - said["sft"]).max() > 1e-4


def test_a_finished_stage_is_not_done_again(
    copy: Path, reader, labels, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("done again")

    stages = [
        path for path in copy.rglob("*") if path.parent != copy and path.is_file()
    ]
    before = {path: path.stat().st_mtime_ns for path in stages}
    report = report_of(copy)
    (copy / "report.json").unlink()
    for name in ("load_model", "supervise", "reinforce", "with_lora"):
        monkeypatch.setattr(module, name, refuse)
    baselines = {"place": lambda one: np.arange(len(one.case.case.items), dtype=float)}
    again = train_judge(reader, labels, settings, copy, baselines)
    assert json.loads(json.dumps(again)) == report == report_of(copy)
    assert {path: path.stat().st_mtime_ns for path in stages} == before


def test_a_run_that_was_stopped_goes_on_with_the_stage_it_was_in(
    copy: Path, reader, labels, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpo", "model"):
        shutil.rmtree(copy / name)
    for name in ("judge.json", "aggregator.safetensors", "to_weigh.safetensors"):
        (copy / name).unlink()
    kept = (copy / "sft" / "adapter_model.safetensors").stat().st_mtime_ns

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "reinforce", killed)
        with pytest.raises(KeyboardInterrupt):
            train_judge(reader, labels, settings, copy, {})
    assert not (copy / "grpo").exists()
    whole = report_of(copy)
    report = train_judge(reader, labels, settings, copy, {})
    assert (copy / "sft" / "adapter_model.safetensors").stat().st_mtime_ns == kept
    assert json.loads(json.dumps(report["stages"])) == whole["stages"]
    assert open_judge(copy).form == "network"


def test_a_folder_of_a_judge_of_other_inputs_is_refused(
    copy: Path, reader, labels, settings
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    fewer = [one for one in labels if one is not labels[-1]]
    longer = dataclasses.replace(settings, grpo_steps=settings.grpo_steps + 1)
    for some, asked, named in (
        (fewer, settings, "labels"),
        (labels, longer, "settings"),
        (fewer, longer, "labels, settings"),
    ):
        with pytest.raises(ValueError, match=f"a judge of other {named}: train into"):
            train_judge(reader, some, asked, copy, {})
    assert before == {
        path: path.read_bytes() for path in copy.rglob("*") if path.is_file()
    }


def test_inputs_with_a_flipped_bit_are_damaged_not_other(
    copy: Path, reader, labels, settings
) -> None:
    path = copy / "inputs.json"
    path.write_text(
        path.read_text().replace('"prompt_version": "', '"prompt_version": "0')
    )
    with pytest.raises(ValueError, match=r"inputs\.json is damaged \(its checksum"):
        train_judge(reader, labels, settings, copy, {})


def test_nothing_is_learned_of_held_out_users(
    tiny_judge: Path,
    reader,
    labels,
    settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny_judge / "before", tmp_path / "judge" / "before")
    learned = []

    def spied(model, chat, cases, reader, settings):
        learned.extend(cases)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "supervise", spied)
    with pytest.raises(KeyboardInterrupt):
        train_judge(reader, labels, settings, tmp_path / "judge", {})
    users = {one.case.user for one in learned}
    assert len(users) > 5
    assert not users & {one.case.user for one in labels if one.is_held_out}


def test_the_llm_form_weighs_with_an_adapter_of_its_own(
    copy: Path, reader, labels, settings, next_case
) -> None:
    llm = dataclasses.replace(settings, form="llm")
    report = train_judge(reader, labels, llm, copy, {})
    files = open_judge(copy)
    assert files.form == "llm"
    assert (files.weights_adapter / "adapter_model.safetensors").is_file()
    assert len(report["logs"]["weights"]) == 2
    weigh = weigher(files, reader)
    cases = [next_case(reader, user, (0,)) for user in range(3)]
    weight_EA = weigh(cases)
    assert weight_EA.shape == (3, 4)
    assert (weight_EA >= 0).all()
    np.testing.assert_allclose(weight_EA.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(weigh(cases[::-1]), weight_EA[::-1])


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form = 'guess': choose one of network, llm"):
        JudgeConfig(form="guess")


@pytest.mark.parametrize("is_held_out", [True, False])
def test_both_halves_are_needed(
    reader, labels, settings, tmp_path: Path, is_held_out: bool
) -> None:
    half = [one for one in labels if one.is_held_out == is_held_out]
    with pytest.raises(ValueError, match="the judge needs both; give labels of more"):
        train_judge(reader, half, settings, tmp_path / "judge", {})
    assert not (tmp_path / "judge").exists()


@pytest.mark.parametrize("is_held_out", [True, False])
def test_labels_without_pairs_are_refused_before_anything_is_trained(
    reader, labels, settings, tmp_path: Path, is_held_out: bool
) -> None:
    some = [
        dataclasses.replace(one, preferences=())
        if one.is_held_out == is_held_out
        else one
        for one in labels
    ]
    named = "held out" if is_held_out else "to learn from"
    with pytest.raises(ValueError, match=f"no case {named} has a preferred pair"):
        train_judge(reader, some, settings, tmp_path / "judge", {})
    assert not (tmp_path / "judge").exists()


def test_measured_cases_are_spread_over_all_users() -> None:
    assert module._spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert module._spread(list(range(7)), 3) == [0, 2, 4]
    assert module._spread([1, 2], 5) == [1, 2]
