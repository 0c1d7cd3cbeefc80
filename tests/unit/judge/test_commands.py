"""``sgrec judge`` as a user types it."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.cli import judge_app as app
from sgrec_torchrec.config import (
    JudgeConfig,
    RunConfig,
)
from sgrec_torchrec.config.arguments import errors_in_one_line, override
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.judge import in_parts
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.learn import train_judge as train_module
from sgrec_torchrec.judge.learn import weak_labels as labels_module
from sgrec_torchrec.judge.learn.labels import POINTS, read_labels
from sgrec_torchrec.logs.judged_users import is_label_user

SEED = 7
"""Of the run's log."""
VERBS = ("label", "train", "run", "page")
Sgrec = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sgrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sgrec:
    """sgrec(*words) -> exit code, what it printed, what it complained."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sgrec judge", *map(str, words)])
        with pytest.raises(SystemExit) as stopped, errors_in_one_line("sgrec"):
            app()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(sgrec: Sgrec, verb: str) -> None:
    code, text, _ = sgrec(verb, "--help")
    assert code == 0
    assert f"judge {verb}" in text
    assert len(text.split()) > 15


def test_no_verb_lists_all_of_them(sgrec: Sgrec) -> None:
    _, text, errors = sgrec()
    assert all(verb in text + errors for verb in VERBS)


def test_labels_of_a_run_and_their_agreement(
    sgrec: Sgrec, run_dir: Path, reader_of_run: CaseReader, tmp_path: Path
) -> None:
    out = tmp_path / "labels"
    code, text, _ = sgrec("label", run_dir, "--out", out, "--cases-per-user", 2)
    assert code == 0
    cases = read_labels(out, reader_of_run)
    assert f"{len(cases)} cases: {out}" in text
    # Of the users that post-training leaves out under the seed of the run's log.
    is_label_U = is_label_user(reader_of_run.split.user_ids, SEED)
    assert is_label_U[[one.case.user for one in cases]].all()
    code, text, _ = sgrec("label", run_dir, "--out", tmp_path / "b", "--compare", out)
    assert code == 0
    assert "same level" in text
    assert "1.000" in text


def write_candidates(folder: Path, reader: CaseReader) -> None:
    """Two users of three candidates each."""
    import pyarrow as pa

    folder.mkdir()
    users, pairs = [], []
    for user in (0, 1):
        name = reader.split.user_ids[user]
        at = Case(user=user, as_of=5, request_timestamp=0, items=())
        users.append(
            {
                "user_id": name,
                "as_of": 5,
                "history_hash": reader.history_hash(at),
                "request_timestamp": reader.next_timestamp(user, 5),
                "next_item_id": "i1",
            }
        )
        pairs += [
            {"user_id": name, "item_id": f"i{n}", "source": "beam"} for n in (1, 2, 3)
        ]
    pq.write_table(pa.Table.from_pylist(users), folder / "users.parquet")
    pq.write_table(pa.Table.from_pylist(pairs), folder / "candidates.parquet")


def test_a_judge_from_labels_to_the_page(
    sgrec: Sgrec,
    run_dir: Path,
    reader_of_run: CaseReader,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    labels, judge, judged = (tmp_path / name for name in ("labels", "judge", "judged"))
    assert sgrec("label", run_dir, "--out", labels, "--cases-per-user", 1)[0] == 0
    code, text, errors = sgrec(
        *("train", run_dir, "--labels", labels, "--out", judge),
        *("--model", tiny_folder, "--max-history", 2, "--sft-epochs", 0.2),
        *("--grpo-steps", 1, "--max-held-out", 3),
    )
    assert code == 0, errors
    assert "popularity" in text
    assert f"judge: {judge}" in text
    assert set(json.loads((judge / "report.json").read_text())["baselines"]) == {
        *("popularity", "text cosine", "chosen together")
    }
    write_candidates(tmp_path / "candidates", reader_of_run)
    words = ("--judge", judge, "--candidates", tmp_path / "candidates", "--out", judged)
    code, text, errors = sgrec("run", run_dir, *words, "--price-per-hour", 1)
    assert code == 0, errors
    figures = json.loads(text.splitlines()[0])
    assert figures["pairs"] == 6
    assert figures["cost_per_pair"] > 0
    parts = sorted(judged.glob("part-*.parquet"))
    assert sum(len(pq.read_table(path)) for path in parts) == 6
    code, text, errors = sgrec("page", run_dir, "--judged", judged)
    assert code == 0, errors
    assert Path(text.strip()).read_text().startswith("<!")


def test_workers_judge_what_one_process_would(
    sgrec: Sgrec,
    run_dir: Path,
    reader_of_run: CaseReader,
    tiny_judge: Path,
    tmp_path: Path,
) -> None:
    write_candidates(tmp_path / "candidates", reader_of_run)
    words = ("--judge", tiny_judge, "--candidates", tmp_path / "candidates")
    words = (*words, "--out", tmp_path / "judged")
    code, text, errors = sgrec("run", run_dir, *words, "--workers", 1)
    assert code == 0, errors
    assert json.loads(text.splitlines()[-2])["pairs"] == 6
    assert text.splitlines()[-1] == f"judged: {tmp_path / 'judged'}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "2", "--backend", "vllm"), "vLLM takes a machine for itself"),
        (("--gpus", "1"), "--gpus is of a Ray cluster: add --executor ray"),
        (("--address", "head:6379"), "--address is of a Ray cluster"),
        (("--executor", "dask"), "no executor 'dask': processes or ray"),
    ],
)
def test_workers_that_cannot_be_are_refused(
    sgrec: Sgrec, run_dir: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, errors = sgrec("run", run_dir, *words)
    assert code == 2
    assert message in one_line(errors)


def one_line(errors: str) -> str:
    (line,) = errors.strip().splitlines()
    assert line.startswith("sgrec: ")
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("label", "RUN/nothing"), "nothing"),
        (("train", "RUN/nothing"), "nothing"),
        (("page", "RUN/nothing"), "nothing"),
        (("run", "RUN"), "judge.json is missing: train one with `sgrec judge train`"),
        (("train", "RUN"), "points.parquet is missing: make labels by"),
        (("train", "RUN", "--form", "guess"), "form = 'guess': choose one of network"),
    ],
)
def test_user_error_is_one_line(
    sgrec: Sgrec, run_dir: Path, words: tuple[str, ...], message: str
) -> None:
    code, _, errors = sgrec(*(word.replace("RUN", str(run_dir)) for word in words))
    assert code == 2
    assert message in one_line(errors)


def test_a_damaged_label_file_is_one_line(
    sgrec: Sgrec, run_dir: Path, tmp_path: Path
) -> None:
    sgrec("label", run_dir, "--out", tmp_path / "labels")
    path = tmp_path / "labels" / POINTS
    path.write_bytes(path.read_bytes()[:-4])
    code, _, errors = sgrec("train", run_dir, "--labels", tmp_path / "labels")
    assert code == 2
    assert f"{path} differs from its sha256" in one_line(errors)
    # Without sums, as users bring them.
    (path.parent / "manifest.json").unlink()
    code, _, errors = sgrec("train", run_dir, "--labels", tmp_path / "labels")
    assert code == 2
    assert f"{path}: cannot be read" in one_line(errors)


def test_a_judge_of_a_log_with_other_aspects_is_one_line_before_any_pair(
    sgrec: Sgrec, run_dir: Path, tiny_judge: Path, tmp_path: Path
) -> None:
    judge = Path(shutil.copytree(tiny_judge, tmp_path / "judge"))
    facts = json.loads((judge / "judge.json").read_text())
    first, *others = facts["aspects"]
    write_sealed(judge / "judge.json", facts | {"aspects": others})
    code, _, errors = sgrec("run", run_dir, "--judge", judge)
    assert code == 2
    assert f"that is {first}, {', '.join(others)}: train a judge" in one_line(errors)
    assert not (run_dir / "judged").exists()


def test_a_judge_of_another_prompt_is_one_line(
    sgrec: Sgrec, run_dir: Path, tiny_judge: Path, tmp_path: Path
) -> None:
    judge = Path(shutil.copytree(tiny_judge, tmp_path / "judge"))
    facts = json.loads((judge / "judge.json").read_text())
    write_sealed(judge / "judge.json", facts | {"prompt_version": "v0-x"})
    code, _, errors = sgrec("run", run_dir, "--judge", judge)
    assert code == 2
    assert "was trained on the prompt v0-x, this release asks" in one_line(errors)


def test_training_takes_its_settings_from_the_words(
    sgrec: Sgrec, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {}

    def spied(reader, labels, settings, out, baselines):
        taken.update(history=reader.settings.max_history, settings=settings, out=out)
        raise ValueError("enough")

    sgrec("label", run_dir, "--out", tmp_path / "labels")
    monkeypatch.setattr(train_module, "train_judge", spied)
    sgrec(
        *("train", run_dir, "--labels", tmp_path / "labels", "--model", "some/model"),
        *("--max-history", 7, "--sft-epochs", 2.5, "--sft-updates", 8),
        *("--grpo-steps", 9),
        *("--max-held-out", 11, "--form", "llm"),
    )
    settings = taken["settings"]
    assert taken["history"] == 7
    assert settings.model == "some/model"
    assert (settings.sft_epochs, settings.grpo_steps) == (2.5, 9)
    assert settings.sft_updates == 8
    assert (settings.max_held_out, settings.form) == (11, "llm")
    assert taken["out"] == run_dir / "judge"


@pytest.fixture
def of_its_own(run_dir: Path, tmp_path: Path) -> Path:
    """The run with settings of its own for the judge."""
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    settings = ["judge.sft_lr=0.5", "judge.grpo_steps=3", "judge.max_history=4"]
    more = ["judge.written=2", "judge.bf16=true", "judge.num_easy=1"]
    config = override(RunConfig.read(folder / "config.json"), [*settings, *more])
    (folder / "config.json").write_text(config.to_json())
    return folder


def test_training_goes_by_the_run_then_by_set_then_by_options(
    sgrec: Sgrec, of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    def spied(reader, labels, settings, out, baselines):
        taken.update(history=reader.settings.max_history, settings=settings)
        raise ValueError("enough")

    sgrec("label", of_its_own)
    monkeypatch.setattr(train_module, "train_judge", spied)
    own = JudgeConfig(
        sft_lr=0.5, grpo_steps=3, max_history=4, written=2, bf16=True, num_easy=1
    )
    sgrec("train", of_its_own)
    assert taken == {"history": 4, "settings": own}
    sets = ("--set", "judge.grpo_steps=20", "--set", "judge.num_draws=5")
    sgrec("train", of_its_own, *sets, "--no-bf16")
    changed = {"grpo_steps": 20, "num_draws": 5, "bf16": False}
    assert taken["settings"] == dataclasses.replace(own, **changed)
    sgrec("train", of_its_own, *sets, "--grpo-steps", 7)
    assert taken["settings"].grpo_steps == 7


def test_labels_go_by_the_run_then_by_set_then_by_options(
    sgrec: Sgrec, of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, ...]] = []

    def spied(reader, graph, settings, seed):
        counts = (settings.num_easy, settings.max_cases, settings.cases_per_user)
        taken.append((*counts, seed))
        raise ValueError("enough")

    monkeypatch.setattr(labels_module, "weak_labels", spied)
    sgrec("label", of_its_own)
    sgrec("label", of_its_own, "--set", "judge.num_easy=0", "--max-cases", 9)
    assert taken == [(1, 4_000, 4, SEED), (0, 9, 4, SEED)]


def test_judging_goes_by_the_run_then_by_set_then_by_options(
    sgrec: Sgrec, of_its_own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, dict[str, Any]]] = []

    def spied(split, folder, asking):
        taken.append((asking.num_written, dict(asking.settings)))
        raise ValueError("enough")

    monkeypatch.setattr(in_parts, "open_asked", spied)
    sgrec("run", of_its_own)
    sgrec("run", of_its_own, "--set", "judge.written=5", "--no-bf16")
    sgrec("run", of_its_own, "--set", "judge.written=5", "--written", 0)
    assert taken == [(2, {"bf16": True}), (5, {}), (0, {"bf16": True})]


@pytest.mark.parametrize("verb", ["label", "train", "run"])
def test_an_assignment_that_cannot_be_is_one_line(
    sgrec: Sgrec, run_dir: Path, verb: str
) -> None:
    for assignment, message in (
        ("judge.grpo_step=3", "no field 'grpo_step'; there are batch_size"),
        ("judge.num_draws=1", "judge.num_draws = 1 is outside [2, 4096]"),
        ("log.seed=3", "this command takes judge.FIELD=VALUE"),
    ):
        code, _, errors = sgrec(verb, run_dir, "--set", assignment)
        assert code == 2
        assert message in one_line(errors)
