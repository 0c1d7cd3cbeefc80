"""Label files: what is written is read back, and every error names file and row."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.files.sealed_json import DamagedError
from sgrec_torchrec.judge.learn.labels import (
    HELD_OUT_SHARE,
    PAIRS,
    POINTS,
    LabelledCase,
    Preference,
    read_labels,
    write_labels,
)

Row = dict[str, Any]
LEVELS = {"level_profile": 1, "level_future_interest": 5, "level_novelty": 3}
LEVELS |= {"level_context": 2}


def point(item: str = "i1", **changes: Any) -> Row:
    return {"user_id": "u0", "as_of": 5, "item_id": item, **LEVELS, **changes}


def pair(better: str = "i1", worse: str = "i2", **changes: Any) -> Row:
    row = {"user_id": "u0", "as_of": 5}
    return row | {"preferred_item_id": better, "other_item_id": worse} | changes


@pytest.fixture
def read(tmp_path: Path, reader) -> Callable[..., list[LabelledCase]]:
    """read(points, pairs=None) -> cases of files with these rows."""

    def make(points: list[Row], pairs: list[Row] | None = None) -> list[LabelledCase]:
        pq.write_table(pa.Table.from_pylist(points), tmp_path / POINTS)
        if pairs is not None:
            pq.write_table(pa.Table.from_pylist(pairs), tmp_path / PAIRS)
        return read_labels(tmp_path, reader)

    return make


def plain(one: LabelledCase) -> Row:
    return dataclasses.asdict(one) | {"levels_CA": one.levels_CA.tolist()}


def test_labels_survive_writing_and_reading(labels, reader, tmp_path: Path) -> None:
    write_labels(labels, reader, tmp_path / "labels")
    found = read_labels(tmp_path / "labels", reader)
    assert list(map(plain, found)) == list(map(plain, labels))
    assert found[0].levels_CA.dtype == np.int8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels"]


def test_labels_without_pairs_survive(labels, reader, tmp_path: Path) -> None:
    some = [dataclasses.replace(one, preferences=()) for one in labels[:3]]
    write_labels(some, reader, tmp_path / "labels")
    found = read_labels(tmp_path / "labels", reader)
    assert list(map(plain, found)) == list(map(plain, some))


def test_users_labels_need_no_more_than_ids_and_levels(read, reader) -> None:
    rows = [point("i1"), point("i2"), point("i1", as_of=6), point("i4", user_id="u1")]
    first, second, third = read(rows, [pair("i2", "i1")])
    assert first.case.items == (1, 2)
    assert first.case.as_of == 5
    assert first.case.request_timestamp == reader.next_timestamp(0, 5)
    assert first.sources == ("labelled", "labelled")
    assert first.levels_CA.tolist() == [[1, 5, 3, 2]] * 2
    assert first.evidence == (("",) * 4,) * 2
    assert first.preferences == (Preference(1, 0),)
    assert (second.case.user, second.case.as_of) == (0, 6)
    assert second.preferences == ()
    assert third.case.user == 1


def test_held_out_users_are_drawn_whole_by_their_id(read, reader) -> None:
    users = reader.split.user_ids
    rows = [point(user_id=name, as_of=n) for name in users for n in (3, 4)]
    found = read(rows)
    drawn = {one.case.user: one.is_held_out for one in found}
    assert all(one.is_held_out == drawn[one.case.user] for one in found)
    share = np.mean(list(drawn.values()))
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.12)
    few = read(rows[-8:])
    assert all(one.is_held_out == drawn[one.case.user] for one in few)


def test_what_users_say_of_sources_times_and_halves_is_kept(read) -> None:
    evidence = {"evidence_profile": "Likes lamps.", "evidence_novelty": None}
    rows = [
        point(source="editor", is_held_out=True, request_timestamp=77, **evidence),
        point("i2", source=None, is_held_out=True, request_timestamp=77, **evidence),
    ]
    (one,) = read(rows)
    assert one.sources == ("editor", "labelled")
    assert one.is_held_out
    assert one.case.request_timestamp == 77
    assert one.evidence[0] == ("Likes lamps.", "", "", "")


def test_missing_points_say_how_to_make_them(reader, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"points.parquet is missing: make"):
        read_labels(tmp_path, reader)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (point(user_id="nobody"), "user_id 'nobody' is not in the log"),
        (point(user_id=None), "user_id is null"),
        (point(item="nothing"), "item_id 'nothing' is not in the catalogue"),
        (point(item=None), "item_id is null"),
        (point(as_of=None), "as_of is null"),
        (point(as_of=0), "as_of 0 is not from 1 to"),
        (point(as_of=99), "as_of 99 is not from 1 to"),
        (point(level_novelty=0), "level_novelty 0 is not a level from 1 to 5"),
        (point(level_novelty=6), "level_novelty 6 is not"),
        (point(level_novelty=None), "level_novelty None is not"),
        (point("i1"), "user 'u0' at as_of 5 has 'i1' twice"),
    ],
)
def test_a_bad_point_names_file_row_and_value(read, tmp_path, row, message) -> None:
    with pytest.raises(ValueError, match=r"points.parquet, row 2: ") as error:
        read([point("i1"), point("i2"), row])
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_events_after_the_train_period_can_not_be_seen(read, reader) -> None:
    end = int(reader.split.sequences.train_end_U[0])
    assert read([point(as_of=end)])[0].case.as_of == end
    with pytest.raises(ValueError, match=f"row 0: as_of {end + 1} is not from 1 to"):
        read([point(as_of=end + 1)])


@pytest.mark.parametrize("value", [3.5, "3"])
def test_levels_and_times_of_another_type_are_refused(read, value) -> None:
    with pytest.raises(ValueError, match=f"row 0: level_profile {value!r} is not"):
        read([point(level_profile=value)])
    with pytest.raises(ValueError, match=f"row 0: as_of {value!r} is not from 1"):
        read([point(as_of=value)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair(user_id=None), "user_id is null"),
        (pair(as_of=None), "as_of is null"),
        (pair(better=None), "preferred_item_id is null"),
        (pair(worse=None), "other_item_id is null"),
        (pair(better="i3"), "'i3' has no levels for user 'u0' at as_of 5"),
        (pair(worse="i3"), "'i3' has no levels for user 'u0' at as_of 5"),
        (pair(user_id="u1"), "'i1' has no levels for user 'u1' at as_of 5"),
        (pair(as_of=6), "'i1' has no levels for user 'u0' at as_of 6"),
    ],
)
def test_a_bad_pair_names_file_row_and_value(read, tmp_path, row, message) -> None:
    with pytest.raises(ValueError, match=r"pairs.parquet, row 1: ") as error:
        read([point("i1"), point("i2")], [pair(), row])
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("value", [5.5, "soon"])
def test_a_pair_at_no_whole_number_of_events_is_refused(read, value) -> None:
    with pytest.raises(ValueError, match=f"pairs.parquet, row 0: as_of {value!r} is"):
        read([point("i1"), point("i2")], [pair(as_of=value)])


@pytest.mark.parametrize("column", ["user_id", "as_of", "item_id", "level_context"])
def test_a_missing_column_is_named(read, column: str) -> None:
    row = point()
    del row[column]
    with pytest.raises(ValueError, match=f"no column {column}; there are ") as error:
        read([row])
    assert POINTS in str(error.value)


@pytest.mark.parametrize("name", [POINTS, PAIRS])
def test_a_damaged_file_is_named(read, reader, tmp_path: Path, name: str) -> None:
    read([point("i1"), point("i2")], [pair()])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{name}: cannot be read") as error:
        read_labels(tmp_path, reader)
    assert "write the file again" in str(error.value)


@pytest.mark.parametrize("name", [POINTS, PAIRS])
def test_labels_that_were_changed_are_refused_unless_their_sums_go(
    labels, reader, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "labels"
    write_labels(labels, reader, folder)
    table = pq.read_table(folder / name)
    pq.write_table(table, folder / name, compression="zstd")
    with pytest.raises(DamagedError, match=f"{name} differs from its sha256") as error:
        read_labels(folder, reader)
    assert "where you changed them yourself, delete" in str(error.value)
    (folder / "manifest.json").unlink()
    assert list(map(plain, read_labels(folder, reader))) == list(map(plain, labels))
