"""The ``sgrec`` command, verb by verb, in this process."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgrec_torchrec import cli
from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.logs.canonical import read_canonical

VERBS = (
    *("doctor", "import", "train", "pipeline", "loop", "evaluate", "report"),
    *("compare", "benchmark", "recommend", "export"),
)

Sgrec = Callable[..., int]


@pytest.fixture
def sgrec(world_of_one, monkeypatch: pytest.MonkeyPatch) -> Sgrec:
    """sgrec(*words) -> exit code."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["sgrec", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    return call


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(sgrec: Sgrec, capsys, verb: str) -> None:
    assert sgrec(verb, "--help") == 0
    text = capsys.readouterr().out
    assert "usage" in text.lower()
    assert len(text.split()) > 15


def test_no_verb_lists_all_of_them(sgrec: Sgrec, capsys) -> None:
    sgrec()
    captured = capsys.readouterr()
    for verb in VERBS:
        assert verb in captured.out + captured.err


def test_table_is_imported_with_a_mapping(sgrec: Sgrec, tmp_path, capsys) -> None:
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("who,what,when\nb,x,20\na,x,10\na,y,12\n")
    items.write_text("sku,name\nx,Lamp\ny,Desk\n")
    code = sgrec(
        *("import", "table", "--path", log, "--out", tmp_path / "canonical"),
        *("--column", "user_id=who", "--column", "item_id=what"),
        *("--column", "timestamp=when", "--items", items),
        *("--item-column", "item_id=sku", "--item-column", "title=name"),
    )
    assert code == 0
    assert "3" in capsys.readouterr().out
    made = read_canonical(tmp_path / "canonical")
    (batch,) = made.interactions(["user_id", "item_id", "timestamp"])
    assert batch.to_pydict() == {
        "user_id": ["a", "a", "b"],
        "item_id": ["x", "y", "x"],
        "timestamp": [10, 12, 20],
    }
    assert made.has_clock


def test_ordinal_log_is_marked_so(sgrec: Sgrec, tmp_path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\na,x,1\na,y,2\n")
    out = tmp_path / "canonical"
    assert sgrec("import", "table", "--path", log, "--out", out, "--ordinal") == 0
    assert not read_canonical(out).has_clock


def test_import_takes_what_to_do_with_bad_rows_and_duplicates(
    sgrec: Sgrec, tmp_path: Path, capsys
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user_id;item_id;timestamp\na;x;10\na;x;10\na;y;soon\n")
    out = tmp_path / "canonical"
    words = ("import", "table", "--path", log, "--delimiter", ";")
    assert sgrec(*words, "--out", out) == 2
    assert "--bad-rows drop leaves such rows out" in capsys.readouterr().err
    assert sgrec(*words, "--check", "--bad-rows", "drop") == 0
    assert "1 rows, 1 users" in capsys.readouterr().out
    assert not out.exists()
    dropped = ("--bad-rows", "drop", "--duplicates", "keep")
    assert sgrec(*words, *dropped, "--out", out) == 0
    assert "2 rows, 1 users" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "table"), "import table: name the log with --path"),
        (("import", "table", "--path", "/nowhere.csv"), "/nowhere.csv"),
        (("import", "netflix"), "import 'netflix': choose one of movielens"),
        (("import", "tables"), "or table (any Parquet, CSV or JSON lines)"),
        (
            ("import", "movielens", "--column", "a=b"),
            "import movielens: --column has an effect on `import table` alone",
        ),
        (("import", "movielens", "--ordinal"), "--ordinal has an effect"),
        (("import", "movielens", "--path", "x"), "log.path = 'x'"),
        (("import", "minionerec"), "log.path: the minionerec importer needs one"),
        (
            (
                *("import", "table", "--path", "x.csv"),
                *("--column", "user_id=a", "--column", "user_id=b"),
            ),
            "user_id=a and user_id=b: leave one of them out",
        ),
        (
            ("import", "table", "--path", "x.csv", "--column", "user_id"),
            "'user_id': write OURS=THEIRS",
        ),
    ],
)
def test_user_error_of_import_is_one_line(
    sgrec: Sgrec, tmp_path, capsys, words: tuple[str, ...], message: str
) -> None:
    assert sgrec(*words, "--out", tmp_path / "canonical") == 2
    captured = capsys.readouterr().err.strip()
    assert captured.startswith("sgrec: ")
    assert message in captured
    assert len(captured.splitlines()) == 1
    assert not (tmp_path / "canonical").exists()


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_folder_that_holds_no_run_is_named(
    sgrec: Sgrec, tmp_path, capsys, verb: str
) -> None:
    assert sgrec(verb, tmp_path / "nothing") == 2
    line = last_error(capsys)
    assert line.startswith("sgrec: ")
    assert "nothing" in line


def test_unknown_log_of_benchmark_names_the_known_ones(sgrec: Sgrec, capsys) -> None:
    assert sgrec("benchmark", "netflix") == 2
    assert "unknown log 'netflix': choose one of movielens" in last_error(capsys)


def test_train_takes_the_options_of_train_py(sgrec: Sgrec, capsys) -> None:
    assert sgrec("train", "--set", "generator.width=3") == 2
    assert "no field 'width'" in last_error(capsys)
    assert sgrec("train", "--run", "smoke", "--set", "log.path=x") == 2
    assert "log.path = 'x'" in last_error(capsys)


def figures(run_dir: Path) -> dict:
    table = json.loads((run_dir / "evaluation" / "results.json").read_text())
    del table["seconds"], table["checksum"]
    return table


def test_evaluate_gives_the_results_again_where_the_run_lies_now(
    sgrec: Sgrec, finished_run: Path, tmp_path, monkeypatch
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished_run.parent, moved, symlinks=True)
    prepared = sorted(path.name for path in (moved / "prepared").iterdir())
    expected = figures(finished_run)
    for written in (moved / "tiny" / "evaluation").iterdir():
        written.unlink()
    (moved / "tiny" / "report.html").unlink()
    monkeypatch.chdir(moved)
    assert sgrec("evaluate", "tiny") == 0
    assert figures(moved / "tiny") == expected
    assert (moved / "tiny" / "report.html").is_file()
    # Nothing is prepared anew, and the training's curve stays.
    assert sorted(path.name for path in (moved / "prepared").iterdir()) == prepared
    curve = (moved / "tiny" / "metrics.jsonl").read_bytes()
    assert curve == (finished_run / "metrics.jsonl").read_bytes()


def test_a_renamed_run_is_refused(finished_run: Path, tmp_path) -> None:
    config = RunConfig.read(finished_run / "config.json")
    assert config.at(finished_run) is config
    with pytest.raises(ValueError, match="holds the run 'tiny': name the folder so"):
        config.at(tmp_path / "other")


def test_report_is_written_again(sgrec: Sgrec, finished_run: Path, tmp_path, capsys):
    moved = tmp_path / "runs"
    shutil.copytree(finished_run.parent, moved, symlinks=True)
    (moved / "tiny" / "report.html").unlink()
    assert sgrec("report", moved / "tiny") == 0
    assert (moved / "tiny" / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out


def test_compare_prints_differences_of_two_runs(
    sgrec: Sgrec, finished_run: Path, capsys
) -> None:
    assert sgrec("compare", finished_run, finished_run) == 0
    text = capsys.readouterr().out
    assert "NDCG@10" in text
    assert "+0.0000" in text
    assert "200 rows of 200 users" in text
    missing = finished_run / "no-such-run"
    assert sgrec("compare", finished_run, missing) == 2
    assert "no-such-run" in last_error(capsys)
    assert sgrec("compare", finished_run, finished_run, "--system", "oracle") == 2
    assert "hits-oracle.parquet" in last_error(capsys)


def test_candidates_of_every_user_within_a_bound(
    sgrec: Sgrec, finished_run: Path, tmp_path, capsys
) -> None:
    out = tmp_path / "pool"
    words = ("candidates", finished_run, "--out", out, "--every-user")
    assert sgrec(*words, "--max-users", 9, "--beam", 12) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["share"] == 1.0
    assert manifest["settings"]["keep_dead"] is True
    assert manifest["users"]["judged"] == 9
    assert sgrec(*words, "--share", 0.5) == 2
    assert "leave out --share" in last_error(capsys)
    assert sgrec("candidates", finished_run, "--out", tmp_path / "five") == 0
    few = json.loads((tmp_path / "five" / "manifest.json").read_text())
    assert few["settings"]["share"] == 0.05
    assert few["settings"]["keep_dead"] is False
