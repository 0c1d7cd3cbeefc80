import dataclasses
from pathlib import Path

import pytest

from sgrec_torchrec.config import RUNS
from sgrec_torchrec.config.arguments import errors_in_one_line, parse_run, run_parser


def test_user_error_is_one_line_and_exit_code_two(capsys, monkeypatch):
    monkeypatch.delenv("SGREC_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped, errors_in_one_line("sgrec"):
        raise ValueError("log.path: give one")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "sgrec: log.path: give one\n"


def test_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("SGREC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="give one"), errors_in_one_line("sgrec"):
        raise ValueError("log.path: give one")


def test_error_of_the_program_keeps_its_traceback():
    with pytest.raises(KeyError), errors_in_one_line("sgrec"):
        raise KeyError("a bug")


def test_an_option_is_given_whole(capsys):
    parser = run_parser("sgrec", "words")
    assert parser.parse_args(["--name", "a"]).name == "a"
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--nam", "a"])
    assert stopped.value.code == 2
    assert "--nam" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("torchrec.sparse", "; pip install 'sgrec_torchrec[train]'"),
        ("fastapi", "; pip install 'sgrec_torchrec[serving]'"),
        ("nothing_known", ""),
    ],
)
def test_absent_module_is_told_with_its_extra(module, told, capsys) -> None:
    with pytest.raises(SystemExit), errors_in_one_line("sgrec"):
        raise ModuleNotFoundError("No module", name=module)
    assert capsys.readouterr().err == f"sgrec: No module{told}\n"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/tmp/x", "a//b", "prepared"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_run(["--run", "smoke", "--name", name])
    assert stopped.value.code == 2
    assert f"name = {name!r}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="name = "):
        dataclasses.replace(RUNS["smoke"], name=name)


def test_a_name_may_lead_further_in() -> None:
    config, _ = parse_run(["--run", "smoke", "--name", "experiments/a"])
    assert config.run_dir == Path("runs/experiments/a")
