"""``sgrec table`` as a user types it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgrec_torchrec import cli

Sgrec = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sgrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sgrec:
    """sgrec(*words) -> exit code, what it printed, what it complained."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sgrec", "table", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.parametrize(
    "verb", ["build", "info", "verify", "lookup", "append", "compact"]
)
def test_every_verb_explains_itself(sgrec: Sgrec, verb: str) -> None:
    code, text, _ = sgrec(verb, "--help")
    assert code == 0
    assert f"sgrec table {verb}" in text


def test_a_table_from_build_to_compaction(
    sgrec: Sgrec, write_pairs, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    columns = {"aspect_novelty": [0.25, 1.0], "as_of": [4, 4], "history_hash": [77, 77]}
    first = write_pairs(
        [(1, 10, 1.5), (1, 20, 2.0)], judge_version=["j", "j"], **columns
    )
    code, text, _ = sgrec("build", first, "--out", table, "--reward-high", 2)
    assert code == 0
    assert "Segment 000001" in text
    columns = {"aspect_novelty": [0.5], "as_of": [4], "history_hash": [77]}
    code, text, _ = sgrec("append", table, write_pairs([(1, 10, 1.0)], **columns))
    assert code == 0
    code, text, _ = sgrec("lookup", table, "--user", 1, "--item", 10, "--item", 30)
    assert code == 0
    lines = text.splitlines()
    assert [
        word for line in lines if " 10 " in line for word in line.split()[1::2]
    ] == [*("10", "1.00002", "0.5000", "000002")]
    assert any(" 30 " in line and "missing" in line for line in lines)
    assert "after the first 4 events of the user's log, history hash 77" in text
    assert "not judged at all" in sgrec("lookup", table, "--user=-9", "--item", 1)[1]
    code, text, _ = sgrec("info", table)
    assert code == 0
    for words in ("novelty", "0 to 2, in steps of 3.1e-05", "Segment 000002"):
        assert words in text
    assert "15 files and the manifest are as written" in sgrec("verify", table)[1]
    code, text, _ = sgrec("compact", table)
    assert code == 0
    assert "Segment 000003" in text
    (path,) = table.glob("segments/*/rows.bin")
    damaged = bytearray(path.read_bytes())
    damaged[0] ^= 1
    path.write_bytes(damaged)
    code, _, complaint = sgrec("verify", table)
    assert code == 2
    assert complaint.count("\n") == 1
    assert "rows.bin is damaged" in complaint


def test_bad_words_end_in_one_line(sgrec: Sgrec, write_pairs, tmp_path: Path) -> None:
    table, file = tmp_path / "table", write_pairs([(1, 1, 0.5), (1, 1, 0.75)])
    code, _, complaint = sgrec("build", file, "--out", table)
    assert code == 2
    assert "row 1: user 1, item 1 has reward 0.75" in complaint
    code, _, complaint = sgrec("build", file, "--out", table, "--on-conflict", "max")
    assert code == 2
    assert "choose one of error, last, mean" in complaint
    assert sgrec("build", file, "--out", table, "--on-conflict", "mean")[0] == 0
    code, _, complaint = sgrec("lookup", table, "--user", "ann", "--item", 1)
    assert code == 2
    assert "--user ann: the table's ids are integers" in complaint
    code, _, complaint = sgrec("info", tmp_path / "absent")
    assert code == 2
    assert "manifest.json is missing" in complaint


def test_string_ids_are_typed_as_they_are(sgrec: Sgrec, write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    sgrec("build", write_pairs([("007", "x", 0.5)]), "--out", table)
    text = sgrec("lookup", table, "--user", "007", "--item", "x")[1]
    assert "0.50001" in text or "0.50000" in text
