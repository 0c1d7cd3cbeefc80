"""``sgrec candidates``: where its settings come from."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sgrec_torchrec.candidates import draw
from sgrec_torchrec.candidates.commands import app
from sgrec_torchrec.config import RUNS, CandidatesConfig
from sgrec_torchrec.config.arguments import override
from sgrec_torchrec.distributed import launch

Settings = Callable[..., CandidatesConfig]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """settings(*words, run=assignments of the run) -> those that would be drawn by."""

    def call(*words: str, run: tuple[str, ...] = ()) -> CandidatesConfig:
        taken: dict[str, Any] = {}

        def spied(run_dir: Path, settings: CandidatesConfig, *_: Any) -> None:
            taken.update(run_dir=run_dir, settings=settings)

        config = override(RUNS["smoke"], list(run))
        (tmp_path / "config.json").write_text(config.to_json())
        monkeypatch.setattr(launch, "process_group", contextlib.nullcontext)
        monkeypatch.setattr(draw, "write_candidates", spied)
        CliRunner().invoke(app, [str(tmp_path), *words], catch_exceptions=False)
        assert taken["run_dir"] == tmp_path
        found: CandidatesConfig = taken["settings"]
        return found

    return call


@pytest.mark.parametrize(
    ("words", "run", "changed"),
    [
        ((), (), {}),
        ((), ("candidates.num_rollouts=8",), {"num_rollouts": 8}),
        (("--set", "candidates.num_rollouts=8"), (), {"num_rollouts": 8}),
        (
            ("--set", "candidates.beam=3", "--hard", "2"),
            ("candidates.beam=9", "candidates.hard=9", "candidates.easy=9"),
            {"beam": 3, "hard": 2, "easy": 9},
        ),
        (
            ("--num-rollouts", "5", "--set", "candidates.num_rollouts=8"),
            (),
            {"num_rollouts": 5},
        ),
        (("--share", "0.5", "--seed", "0"), (), {"share": 0.5, "seed": 0}),
        (("--every-user",), (), {"share": 1.0, "keep_dead": True}),
        (("--fresh",), ("candidates.share=0.1",), {"fresh": True, "share": 0.1}),
        ((), ("candidates.keep_dead=true",), {"keep_dead": True}),
        (
            ("--max-users", "7", "--max-per-user", "9", "--easy", "0"),
            (),
            {"max_users": 7, "max_per_user": 9, "easy": 0},
        ),
    ],
)
def test_options_go_before_set_and_set_before_the_run(
    settings: Settings,
    words: tuple[str, ...],
    run: tuple[str, ...],
    changed: dict[str, Any],
) -> None:
    expected = dataclasses.replace(CandidatesConfig(), **changed)
    assert settings(*words, run=run) == expected


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("candidates.beams=3", "no field 'beams'; there are beam"),
        ("candidates.beam=-1", r"candidates\.beam = -1 is outside \[0, 4096\]"),
        ("judge.written=3", r"this command takes candidates\.FIELD=VALUE"),
        ("log.seed=3", r"this command takes candidates\.FIELD=VALUE"),
    ],
)
def test_an_assignment_that_cannot_be_is_refused(
    settings: Settings, assignment: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings("--set", assignment)
