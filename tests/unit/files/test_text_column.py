"""Columns of texts that stay in Arrow: as a list would answer, and never a copy."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sgrec_torchrec.files import text_column
from sgrec_torchrec.files.text_column import (
    TextColumn,
    map_columns,
    places_of,
    taken,
    write_columns,
)

TEXTS = ["tea", "", "Kaffee", "\u00e9clair", "tea"]


@pytest.fixture
def column() -> TextColumn:
    """The same in two chunks of another type."""
    return TextColumn(pa.chunked_array([TEXTS[:2], TEXTS[2:]], pa.string()))


def test_it_answers_as_a_list_of_the_texts(
    column: TextColumn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_column, "PIECE", 2)
    assert list(column) == TEXTS
    assert len(column) == 5
    assert (column[3], column[-1], column[np.int32(2)]) == (TEXTS[3], "tea", "Kaffee")
    assert column[1:4] == TEXTS[1:4]
    assert "Kaffee" in column
    assert "Tee" not in column
    assert (column.index("tea"), column.index("tea", 1)) == (0, 4)
    assert column.take(np.array([4, 2])) == ["tea", "Kaffee"]
    with pytest.raises(IndexError):
        column[5]
    with pytest.raises(ValueError, match="'tea' is not among 5 texts"):
        column.index("tea", 1, 4)


def test_it_equals_what_holds_the_same_texts(column: TextColumn) -> None:
    assert column == TEXTS
    assert list.__eq__(TEXTS, column) is NotImplemented  # so Python asks the column
    assert column == TextColumn(pa.array(TEXTS))
    assert column != TEXTS[:4]
    assert column != [*TEXTS[:4], "Tee"]
    assert column != 5


def test_arrow_and_numpy_take_it(column: TextColumn) -> None:
    plain = pa.array(column, pa.large_string())
    again = pa.array(column, pa.large_string())
    assert plain.buffers()[2].address == again.buffers()[2].address
    assert pa.array(column, pa.string()).to_pylist() == TEXTS
    assert np.array(column, dtype=object).tolist() == TEXTS
    assert np.unique(column)[-1] == "\u00e9clair"


@pytest.mark.parametrize("as_list", [True, False])
def test_texts_are_taken_and_found_in_lists_too(
    column: TextColumn, as_list: bool
) -> None:
    texts = TEXTS if as_list else column
    assert taken(texts, iter((2, 0))) == ["Kaffee", "tea"]
    # of a text that is there twice the last, as a dictionary over the places has it
    assert places_of(texts, iter(("tea", "Tee", "Kaffee"))) == {"tea": 4, "Kaffee": 2}
    assert places_of(texts, ()) == {}


def test_a_written_file_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "texts.arrow"
    texts = pa.chunked_array([TEXTS[:2], TEXTS[2:]], pa.large_string())
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(range(10)), 2)
    write_columns(path, {"text": texts, "pair": pairs})
    before = pa.total_allocated_bytes()
    columns = map_columns(path)
    column = TextColumn(columns["text"])
    assert pa.total_allocated_bytes() == before
    assert column == TEXTS
    assert columns["pair"].to_pylist()[4] == [8, 9]


def test_a_file_without_rows_opens(tmp_path: Path) -> None:
    write_columns(tmp_path / "none.arrow", {"text": pa.array([], pa.large_string())})
    assert list(TextColumn(map_columns(tmp_path / "none.arrow")["text"])) == []


@pytest.mark.parametrize("content", [b"", b"no Arrow file at all"])
def test_a_file_of_another_kind_is_refused_by_name(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "odd.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"odd\.arrow: cannot be read"):
        map_columns(tmp_path / "odd.arrow")
