"""User sequences with item text."""

import pyarrow as pa
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.importers.locate import data_root
from sgrec_torchrec.logs.importers.sequences import import_sequences


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    (path / "user_sequence.txt").write_text("u2 b a b\nu1 c\n")
    (path / "item_text.txt").write_text("a red pen\nb ink\nc\n")
    return path


def test_order_becomes_an_ordinal(folder, tmp_path):
    report = import_sequences(str(folder), tmp_path / "out")
    log = pa.Table.from_batches(read_canonical(tmp_path / "out").interactions())
    rows = list(zip(*log.to_pydict().values(), strict=True))
    assert rows == [("u1", "c", 0), ("u2", "b", 0), ("u2", "a", 1), ("u2", "b", 2)]
    assert report.has_clock is False
    assert "timestamps are ordinals: only their order means something" in report.lines()


@pytest.mark.parametrize("name", ["user_sequence.txt", "item_text.txt"])
def test_a_byte_order_mark_is_no_part_of_an_id(folder, tmp_path, name):
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    report = import_sequences(str(folder), tmp_path / "out")
    assert (report.users, report.items) == (2, 3)
    log = pa.Table.from_batches(read_canonical(tmp_path / "out").interactions())
    assert log["user_id"].to_pylist() == ["u1", "u2", "u2", "u2"]


def test_text_becomes_the_title(folder, tmp_path):
    import_sequences(str(folder), tmp_path / "out")
    items = read_canonical(tmp_path / "out").items()
    assert items["title"].to_pylist() == ["red pen", "ink", "c"]


def test_beauty_arrives_whole(tmp_path):
    if not (data_root() / "beauty").is_dir():
        pytest.skip(f"{data_root() / 'beauty'} is absent; set SGREC_DATA")
    report = import_sequences("beauty", tmp_path / "out")
    assert (report.users, report.items, report.rows) == (22_363, 12_101, 198_502)
    assert report.out_of_order_rows == report.duplicate_rows == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 a\nu2\n", "line 2: has no item; write a user, then item ids"),
        ("u1 a\n\nu2 b\n", "line 2: has no item; write a user"),
        ("u1 a\nu2 b\nu1 c\n", "line 3: user 'u1' has a line already; write all"),
        ("u1 a\nu2 b  c\n", "line 2: holds an empty id; separate ids by single"),
        ("", "has no rows; give a file with data"),
        ("u1 a z\n", "'item_id', row 1: 'z' is not in the catalogue .*item_text.txt"),
    ],
)
def test_a_bad_line_is_named(folder, tmp_path, text, message):
    (folder / "user_sequence.txt").write_text(text)
    with pytest.raises(ValueError, match=f"user_sequence.txt.*{message}"):
        import_sequences(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_item_with_two_texts_is_named(folder, tmp_path):
    (folder / "item_text.txt").write_text("a pen\nb ink\nc cup\na pencil\n")
    with pytest.raises(ValueError, match="row 3: 'a' is in the catalogue already"):
        import_sequences(str(folder), tmp_path / "out")


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "item_text.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"item_text.txt: not found; the fold"):
        import_sequences(str(folder), tmp_path / "out")


def test_a_file_of_another_encoding_is_named(folder, tmp_path):
    (folder / "user_sequence.txt").write_bytes(b"u1 \xff\xfe\n")
    with pytest.raises(ValueError, match=r"user_sequence.txt: is not UTF-8 .*convert"):
        import_sequences(str(folder), tmp_path / "out")
