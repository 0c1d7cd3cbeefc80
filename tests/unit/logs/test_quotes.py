"""Text behind a closing quote is refused with its line; what is well-formed passes."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import imported, refused, write

from sgrec_torchrec.logs.quotes import CheckedQuotes

HEADER = "user_id,item_id,timestamp\n"


def read(text: str, size: int, delimiter: str = ",") -> str:
    stream = CheckedQuotes(io.BytesIO(text.encode()), Path("log.csv"), delimiter)
    parts = iter(lambda: stream.read(size), b"")
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('u,"13" monitor",1\n', 1),
        ('a,b\n"a"b,1\n', 2),
        ('"two\nlines" and more\n', 2),
        ('"a" ,1\n', 1),
        ('x\n"a""b"c', 2),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_text_behind_a_closing_quote_is_refused(
    text: str, line: int, size: int
) -> None:
    with pytest.raises(ValueError, match=rf"^log\.csv: line {line} has text behind a "):
        read(text, size)


@pytest.mark.parametrize(
    "text",
    [
        '5" pipe,13" monitor\n',
        '"13"" monitor",""\r\n"",x',
        '"""",""""""\n',
        '"a,\n""b"" c"\r"d"',
        '"left open, as the reader will say',
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_what_is_well_formed_passes_to_the_byte(text: str, size: int) -> None:
    assert read(text, size) == text


@given(
    rows=st.lists(st.lists(st.text(alphabet='",;\n\ra '), min_size=1), min_size=1),
    size=st.integers(1, 9),
    delimiter=st.sampled_from(",;"),
)
def test_all_that_is_written_by_the_rules_passes(
    rows: list[list[str]], size: int, delimiter: str
) -> None:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    assert read(file.getvalue(), size, delimiter) == file.getvalue()


def test_an_import_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", HEADER + 'u,a,1\nu,"13" monitor",2\n')
    said = refused(path, tmp_path, "line 3 has text behind a closing quote")
    assert str(path) in said
    assert "double a quote" in said


def test_an_import_keeps_doubled_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", HEADER + 'u,"13"" monitor",1704110400\n')
    assert [row[1] for row in imported(path, tmp_path)] == ['13" monitor']
