"""A run that is killed at any byte loses at most the user that was being written."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.judge import journal as module
from sgrec_torchrec.judge.journal import JOURNAL, LOCK, Journal

SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("history_hash", pa.int64())]
)
Rows = list[dict[str, Any]]


def rows_of(user: str, count: int = 2) -> Rows:
    return [
        {"user_id": user, "item_id": f"i{n}", "history_hash": 7} for n in range(count)
    ]


def everything(folder: Path) -> Rows:
    """All rows of the folder's parts, in order."""
    return [
        row
        for path in sorted(folder.glob("part-*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def begun(folder: Path, *users: str) -> Journal:
    journal = Journal(folder, SCHEMA)
    for user in users:
        journal.add(rows_of(user))
    return journal


def test_sealed_rows_are_the_added_ones_in_order(tmp_path: Path) -> None:
    journal = begun(tmp_path, "b", "a", "\u00e9\n")
    assert set(journal.done) == {"a", "b", "\u00e9\n"}
    assert journal.num_pairs == 6
    journal.seal()
    journal.close()
    assert everything(tmp_path) == [
        *rows_of("b"),
        *rows_of("a"),
        *rows_of("\u00e9\n"),
    ]
    assert (tmp_path / JOURNAL).read_bytes() == b""
    assert pq.read_schema(tmp_path / "part-00000.parquet").equals(SCHEMA)


def test_a_line_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    journal = begun(tmp_path, "a")
    copy = tmp_path.parent / "copy"
    shutil.copytree(tmp_path, copy)
    journal.close()
    assert set(Journal(copy, SCHEMA).done) == {"a"}


@pytest.mark.long
def test_cut_at_any_byte_only_the_torn_user_is_lost(tmp_path: Path) -> None:
    first = tmp_path / "first"
    begun(first, "a").seal()
    begun(first, "b", "\u00e9", "d").close()
    whole = (first / JOURNAL).read_bytes()
    line_ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    assert len(line_ends) == 3
    order = ["b", "\u00e9", "d"]
    for length in range(len(whole) + 1):
        folder = tmp_path / f"cut-{length}"
        shutil.copytree(first, folder)
        (folder / JOURNAL).write_bytes(whole[:length])
        journal = Journal(folder, SCHEMA)
        num_whole = sum(end <= length for end in line_ends)
        assert set(journal.done) == {"a", *order[:num_whole]}
        assert journal.num_pairs == 2 * (1 + num_whole)
        for user in order[num_whole:]:  # what the next run judges
            journal.add(rows_of(user))
        journal.close()
        journal = Journal(folder, SCHEMA)  # killed once more
        journal.seal()
        journal.close()
        assert everything(folder) == [
            row for user in ("a", *order) for row in rows_of(user)
        ]
        shutil.rmtree(folder)


def test_killed_between_part_and_journal_no_user_is_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begun(tmp_path, "a", "b")
    with monkeypatch.context() as patch:

        def killed(self: Journal) -> None:
            raise KeyboardInterrupt

        patch.setattr(Journal, "_rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.seal()
    journal.close()  # as the death of its process does to its lock
    assert len(everything(tmp_path)) == 4
    assert (tmp_path / JOURNAL).read_text().count("\n") == 2
    again = Journal(tmp_path, SCHEMA)
    assert set(again.done) == {"a", "b"}
    assert again.num_pairs == 4
    again.add(rows_of("c"))
    again.seal()
    assert everything(tmp_path) == [*rows_of("a"), *rows_of("b"), *rows_of("c")]


def test_killed_before_the_part_is_whole_the_journal_still_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begun(tmp_path, "a", "b")
    with monkeypatch.context() as patch:

        def killed(table: Any, path: Path, **_: Any) -> None:
            Path(path).write_bytes(b"PAR1 half")
            raise KeyboardInterrupt

        patch.setattr(module.pq, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.seal()
    assert {path.name for path in tmp_path.iterdir()} == {JOURNAL, LOCK}
    journal.close()
    again = Journal(tmp_path, SCHEMA)
    again.seal()
    assert everything(tmp_path) == [*rows_of("a"), *rows_of("b")]


def test_parts_are_sealed_when_they_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAIRS_PER_PART", 5)
    journal = begun(tmp_path, *"abcdefg")
    assert [len(pq.read_table(path)) for path in journal.parts] == [6, 6]
    assert (tmp_path / JOURNAL).read_text().count("\n") == 1
    journal.close()
    assert set(Journal(tmp_path, SCHEMA).done) == set("abcdefg")


def test_nothing_to_seal_makes_no_part(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SCHEMA)
    journal.seal()
    assert journal.parts == []


def test_a_damaged_part_is_named_and_can_be_deleted(tmp_path: Path) -> None:
    for user in "abc":
        journal = begun(tmp_path, user)
        journal.seal()
        journal.close()
    first = tmp_path / "part-00000.parquet"
    first.write_bytes(first.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"part-00000.parquet: cannot be read .*delet"):
        Journal(tmp_path, SCHEMA)
    first.unlink()
    # The advice is good: no other part is written over.
    journal = begun(tmp_path, "d")
    assert set(journal.done) == {"b", "c", "d"}
    journal.seal()
    assert everything(tmp_path) == [*rows_of("b"), *rows_of("c"), *rows_of("d")]


def test_a_part_that_is_not_as_its_manifest_says_is_named(tmp_path: Path) -> None:
    for user in "ab":
        journal = begun(tmp_path, user)
        journal.seal()
        journal.close()
        if user == "a":
            manifest = {"format_version": 2, "sha256": journal.sums}
            write_sealed(tmp_path / "manifest.json", manifest)
    # The later part is not listed: its process was killed before it could be.
    assert set(Journal(tmp_path, SCHEMA).done) == {"a", "b"}
    whole = tmp_path / "part-00000.parquet"
    rows = pq.read_table(whole)
    pq.write_table(rows, whole)
    with pytest.raises(ValueError, match=r"part-00000.parquet differs from its sha256"):
        Journal(tmp_path, SCHEMA)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    begun(tmp_path, "a", "b").close()
    lines = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(b"x" + lines)
    with pytest.raises(ValueError, match=r"journal.jsonl, line 1: cannot be read"):
        Journal(tmp_path, SCHEMA)
    assert (tmp_path / JOURNAL).read_bytes() == b"x" + lines  # nothing is lost


def test_what_no_file_can_hold_is_refused_at_once(tmp_path: Path) -> None:
    journal = begun(tmp_path, "a")
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.add([{"user_id": "b", "item_id": float("nan")}])
    journal.close()
    assert set(Journal(tmp_path, SCHEMA).done) == {"a"}


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = begun(tmp_path, "a")
    with pytest.raises(BlockingIOError, match="another process is judging"):
        Journal(tmp_path, SCHEMA)
    first.close()
    assert set(Journal(tmp_path, SCHEMA).done) == {"a"}
