"""``sgrec recommend`` and ``sgrec export`` as a user sees them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgrec_torchrec import cli
from sgrec_torchrec.logs.split_store import load_split

Sgrec = Callable[..., int]


@pytest.fixture
def sgrec(monkeypatch: pytest.MonkeyPatch) -> Sgrec:
    """sgrec(*words) -> exit code."""

    def call(*words: object) -> int:
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "argv", ["sgrec", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0)

    return call


def test_a_user_of_the_run_sees_items_and_history(
    sgrec: Sgrec, served_run: Path, recommender, capsys
) -> None:
    assert sgrec("recommend", served_run, "--user", "u3", "--k", 4) == 0
    text = capsys.readouterr().out
    split = load_split(served_run / "split")
    user = split.user_ids.index("u3")
    first, end = split.sequences.offsets_U1[user : user + 2]
    rows = split.sequences.items_R[first:end]
    assert f"{len(rows)} events, the newest {len(rows)} read" in text
    assert "For user u3 by tiny, step" in text
    assert "evidence weighs 0.6" in text
    last_item = split.catalogue.item_ids[rows[-1]]
    assert "1970-01-12" in text
    history, listed = text.split("recommended")
    assert last_item in history
    assert listed.count("%") == 4


def test_filters_and_evidence_are_options(
    sgrec: Sgrec, package: Path, recommender, capsys
) -> None:
    words = ("recommend", package, "--item", "i1", "--item", "i2", "--k", 3)
    options = ("--without-evidence", "--block", "i5", "--with-seen")
    assert sgrec(*words, *options, "--max-per-prefix", 1) == 0
    text = capsys.readouterr().out
    assert "without evidence" in text
    codes = [line.split("\u2502")[-2].split()[0] for line in text.splitlines()[-4:-1]]
    assert len(set(codes)) == 3
    assert sgrec(*words, "--allow", "i7", "--block", "i7") == 0
    assert "No item is left" in capsys.readouterr().out
    assert sgrec("recommend", package) == 0
    assert "0 events, the newest 0 read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--user", "nobody"), "user 'nobody' is not among the 200 users"),
        (("--user", "u3", "--item", "i1"), "give --user or --item, not both"),
        (("--user", "u3", "--k", "0"), "k = 0 is outside [1, 60]"),
        (("--item", "tea"), "item 'tea' (place 0) is not in the catalogue"),
        (("--category", "tea"), "this catalogue has no categories"),
    ],
)
def test_mistakes_end_in_one_line(
    sgrec: Sgrec, served_run: Path, capsys, words: tuple[str, ...], message: str
) -> None:
    assert sgrec("recommend", served_run, *words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error


def test_a_package_has_no_users(sgrec: Sgrec, package: Path, capsys) -> None:
    assert sgrec("recommend", package, "--user", "u3") == 2
    assert "which holds no users" in capsys.readouterr().err


def test_export_says_what_it_cost(
    sgrec: Sgrec, served_run: Path, tmp_path: Path, capsys
) -> None:
    words = ("export", served_run, "--out", tmp_path / "package")
    assert sgrec(*words, "--int8", "--measure") == 0
    text = capsys.readouterr().out
    assert "tables: int8" in text
    assert "(0.312x)" in text
    assert sgrec(*words, "--measure") == 0
    text = capsys.readouterr().out
    assert "(loss 0.000 %)" in text
    assert "equal in 100.00 % of rows" in text
    assert "at most 0.00e+00 nats" in text
    assert sgrec("export", tmp_path, "--out", tmp_path / "other") == 2
    assert "config.json is missing" in capsys.readouterr().err
