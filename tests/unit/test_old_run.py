"""A run of before candidates and judge had settings opens, and nothing is done again.

``old_config.json`` is what such a run wrote; keys and commands are what that release
made of it. Who adds a setting that training hangs on changes them with reason.
"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sgrec_torchrec.a2po.aligner import FREE
from sgrec_torchrec.config import CandidatesConfig, JudgeConfig, RunConfig, settled
from sgrec_torchrec.config.arguments import override, parse_with
from sgrec_torchrec.distributed.checkpoint import FREE_FIELDS, check_config
from sgrec_torchrec.experiments import fusions
from sgrec_torchrec.runs import pipeline
from sgrec_torchrec.runs.made_once import made
from sgrec_torchrec.runs.pipeline import pipeline_steps, with_bounds

OLD = Path(__file__).with_name("old_config.json")
JUDGED = ("judge.grpo_steps=3", "judge.form=llm", "candidates.beam=7")


@pytest.fixture
def old() -> dict[str, Any]:
    """What the run wrote."""
    plain: dict[str, Any] = json.loads(OLD.read_text())
    return plain


@pytest.fixture(params=[(), JUDGED], ids=["as it was", "with a judge of its own"])
def config(request: pytest.FixtureRequest) -> RunConfig:
    """The run as it is read now, and with settings that the old release lacked."""
    return override(RunConfig.read(OLD), list(request.param))


def test_what_the_run_lacks_is_as_by_default(old: dict[str, Any]) -> None:
    config = RunConfig.read(OLD)
    assert config.judge == JudgeConfig()
    assert config.candidates == CandidatesConfig()
    # without settings of later releases that are as they were before they came
    plain = settled(config)
    assert {name: plain[name] for name in old} == old
    assert plain.keys() - old.keys() == {"judge", "candidates"}


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"judges": {}}, "judges"),
        ({"judge": {"grpo_step": 3}}, "grpo_step"),
        ({"candidates": {"share": 0.1, "beams": 3}}, "beams"),
    ],
)
def test_unknown_settings_are_refused_by_name(
    old: dict[str, Any], tmp_path: Path, extra: dict[str, Any], named: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old | extra))
    with pytest.raises(ValueError, match=f"this version .*'{named}'"):
        RunConfig.read(path)


@pytest.mark.parametrize("free_fields", [FREE_FIELDS, FREE], ids=["pretrain", "align"])
def test_its_checkpoints_go_on(
    config: RunConfig, tmp_path: Path, free_fields: tuple[str, ...]
) -> None:
    (tmp_path / "config.json").write_text(OLD.read_text())
    check_config(tmp_path, config.to_json(), free_fields)
    other = override(config, ["generator.dim=32"])
    with pytest.raises(ValueError, match=r"saved with generator\.dim = 64"):
        check_config(tmp_path, other.to_json(), free_fields)


def _make(folder: Path) -> None:
    folder.mkdir(parents=True)


def test_its_prepared_stages_are_found(config: RunConfig, tmp_path: Path) -> None:
    stages = (config.log, config.graph, config.evidence, config.tokens)
    here = dataclasses.replace(config, out_dir=str(tmp_path))
    folders = [made(here, "stage", ["before", one], _make) for one in stages]
    assert [folder.name.removeprefix("stage-") for folder in folders] == [
        *("cac4b3b551420528", "8bcf18fbfb9450ed"),
        *("464084e521ffd508", "97c96ac4134dc068"),
    ]


def test_its_pretraining_is_not_done_again(
    config: RunConfig, old: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "fingerprint", lambda *_: "the log")
    # Its table does not lie here; post-training is no part of what is compared.
    here = override(config, ["align.table=none"])
    step = pipeline_steps(here, [], None)[0]
    free = ("align", "evaluation", "name", "out_dir")
    kept = {name: value for name, value in old.items() if name not in free}
    assert step.settings == {**kept, "source": "the log"}


@pytest.mark.parametrize(
    ("words", "bf16"),
    [([], []), (["--bf16"], ["--bf16"]), (["--judge-model", "some/lm"], [])],
)
def test_its_pipeline_goes_by_the_same_commands(
    words: list[str], bf16: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "has_fast_bf16", lambda: False)
    config, args = parse_with(pipeline._parser(), ["--run", "movielens", *words])
    steps = pipeline_steps(config, ["--run", "movielens"], with_bounds(config, args))
    commands = {step.name: list(step.command[2:]) for step in steps}
    model = ["--model", "some/lm"] if "some/lm" in words else []
    run = "runs/movielens"
    assert commands["candidates"] == [
        *("candidates", run, "--max-users", "12", "--max-per-user", "24")
    ]
    assert commands["labels"] == ["judge", "label", run, "--max-cases", "300"]
    assert commands["judge"] == [
        *("judge", "train", run, "--sft-updates", "40", "--grpo-steps", "10"),
        *("--max-held-out", "12", "--max-weight-cases", "24", *model, *bf16),
    ]
    assert commands["judged"] == ["judge", "run", run, "--written", "1", *bf16]
    settings = {step.name: step.settings for step in steps}
    log = dataclasses.asdict(config.log)
    counts = {"--max-users": 12, "--max-per-user": 24}
    assert settings["candidates"] == {**counts, "log": log}
    assert settings["labels"] == {"--max-cases": 300, "seed": 0}
    on = dict.fromkeys(bf16, "")
    assert settings["judge"] == {
        **{"--sft-updates": 40, "--grpo-steps": 10, "--max-held-out": 12},
        **{"--max-weight-cases": 24, **dict([model] if model else []), **on},
    }
    assert settings["judged"] == {"--written": 1, **on}


def test_its_arms_keep_their_folders(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusions, "made_of", lambda *_: "weights")
    trainee: Any = SimpleNamespace(config=config, best=Path("best"))
    pretrained: Any = SimpleNamespace(trainee=trainee)
    names = [
        fusions._arm_config(pretrained, arm, config.align).name
        for arm in ("pretrained", "grpo", "a2po")
    ]
    assert names == [
        *("movielens-pretrained-08395a5c", "movielens-grpo-bc01ce45"),
        "movielens-a2po-fd2d55d9",
    ]


def test_its_arms_are_not_pretrained_again(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusions, "made_of", lambda *_: "weights")
    monkeypatch.setattr(fusions, "run", None)
    monkeypatch.chdir(tmp_path)
    config.run_dir.mkdir(parents=True)
    key = "55e8a11b9c8279c4c4decd16b899865eb883801145eb64d202cd1d23f4e4148f"
    found = {"key": key, "prior_weight": 0.25}
    (config.run_dir / "pretrained.json").write_text(json.dumps(found))
    ranks: Any = None
    assert fusions._prior_weight(config, ranks) == 0.25
