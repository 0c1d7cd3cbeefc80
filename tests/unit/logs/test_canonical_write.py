"""Writing a canonical log: what is refused and how, what is sorted and counted."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin, report_of
from sgrec_torchrec.logs.incoming import Incoming
from sgrec_torchrec.logs.sorted_rows import SortedRows

LOG = {
    "user_id": ["b", "a", "a", "b"],
    "item_id": [1, 2, 3, 3],
    "timestamp": [50, 90, 30, 60],
}
ITEMS = {"item_id": [1, 2, 3], "title": ["pen", "ink", "cup"]}


def write(
    out_dir: Path,
    log: object = LOG,
    items: object = ITEMS,
    has_clock: bool = True,
    **options: object,
) -> ImportReport:
    tables = [
        pa.table(part) if isinstance(part, dict) else part for part in (log, items)
    ]
    return write_canonical(
        out_dir,
        Incoming(name="log.csv", source=tables[0]),
        None if items is None else Incoming(name="items.csv", source=tables[1]),
        Origin(importer="test", note="a note", has_clock=has_clock),
        **options,
    )


def rows_of(out_dir: Path) -> list[tuple]:
    table = pa.Table.from_batches(read_canonical(out_dir).interactions())
    return list(zip(*table.to_pydict().values(), strict=True))


def refused(tmp_path: Path, message: str, **arguments: object) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_sorted_by_user_and_time_and_counted(tmp_path):
    report = write(tmp_path / "out")
    assert rows_of(tmp_path / "out") == [
        ("a", 3, 30),
        ("a", 2, 90),
        ("b", 1, 50),
        ("b", 3, 60),
    ]
    assert report.out_of_order_rows == 1
    assert (report.rows_read, report.rows, report.users, report.items) == (4, 4, 2, 3)
    assert report.lines()[0].startswith("test: 4 rows, 2 users, 3 items")


def test_only_the_canonical_folder_is_left(tmp_path):
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"interactions", "items.parquet", "manifest.json"}


def test_a_second_import_replaces_the_first(tmp_path):
    write(tmp_path / "out")
    log = {"user_id": ["c"], "item_id": [1], "timestamp": [7]}
    write(tmp_path / "out", log=log)
    assert rows_of(tmp_path / "out") == [("c", 1, 7)]


def test_a_failed_import_leaves_the_older_log_alone(tmp_path):
    write(tmp_path / "out")
    before = rows_of(tmp_path / "out")
    with pytest.raises(ValueError, match="is negative"):
        write(tmp_path / "out", log=LOG | {"timestamp": [1, 2, -3, 4]})
    assert rows_of(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_canonical_log_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no canonical log"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="choose another output folder"):
        write(tmp_path / "file" / "out")


def test_rows_equal_in_all_columns_are_dropped_other_values_stay(
    tmp_path,
):
    log = {
        "user_id": [1] * 6,
        "item_id": [2] * 6,
        "timestamp": [5, 5, 5, 6, 5, 5],
        "event": ["buy", "buy", "view", "buy", "buy", "view"],
        "value": [2.5, 1.5, 3.5, 4.5, 2.5, 3.5],
    }
    report = write(tmp_path / "out", log=log)
    assert (report.duplicate_rows, report.duplicates, report.rows) == (2, "drop", 4)
    assert [row[-1] for row in rows_of(tmp_path / "out")] == [1.5, 2.5, 3.5, 4.5]


@pytest.mark.parametrize(
    ("has_clock", "rule", "rows"),
    [(True, "keep", 2), (False, None, 2), (False, "drop", 1), (True, None, 1)],
)
def test_the_duplicate_rule_follows_the_clock_unless_declared(
    tmp_path, has_clock, rule, rows
):
    log = {"user_id": [1, 1], "item_id": [2, 2], "timestamp": [5, 5]}
    report = write(tmp_path / "out", log=log, has_clock=has_clock, duplicates=rule)
    assert (report.rows, report.duplicate_rows) == (rows, 1)
    manifest = read_canonical(tmp_path / "out").manifest
    assert manifest["duplicates"] == ("keep" if rows == 2 else "drop")
    assert manifest["has_clock"] is has_clock


def test_an_unknown_duplicate_rule_is_refused(tmp_path):
    refused(tmp_path, "duplicates = 'merge': choose one of keep", duplicates="merge")


def test_a_missing_column_is_named_with_a_near_one(tmp_path):
    log = {"userId": ["a"], "item_id": [1], "timestamp": [5]}
    refused(
        tmp_path,
        r"log.csv: no column 'user_id' in 'userId', .*did you mean 'userId'\? "
        r"Rename it, or map it: user_id=userId",
        log=log,
    )


def test_a_missing_column_is_named_by_its_synonym(tmp_path):
    log = {"user_id": ["a"], "asin": [1], "timestamp": [5]}
    refused(tmp_path, "no column 'item_id'.*did you mean 'asin'", log=log)


def test_a_missing_column_like_no_other_asks_for_a_mapping(tmp_path):
    log = {"user_id": ["a"], "item_id": [1], "zzz": [5]}
    refused(tmp_path, "no column 'timestamp'.*timestamp=ITS_NAME", log=log)


def test_a_missing_column_of_the_catalogue_is_named(tmp_path):
    items = {"item_id": [1], "product_name": ["pen"]}
    refused(tmp_path, "items.csv: no column 'title'.*'product_name'", items=items)


def test_ignored_columns_stand_in_the_manifest(tmp_path):
    write(tmp_path / "out", log=LOG | {"store": [1, 1, 1, 1]})
    assert read_canonical(tmp_path / "out").manifest["ignored_columns"] == ["store"]


BAD_COLUMNS = [
    (
        "user_id",
        ["a", None, "b", None],
        r"row 1: null is not allowed.*1 more rows\), next: row 3: null; ",
    ),
    ("item_id", [1, 2, None, 3], "row 2: null is not allowed here; fill it in"),
    ("timestamp", [1, 2, 3, None], "row 3: null is not allowed here"),
    ("event", ["x", None, "x", "x"], "row 1: null is not allowed here"),
    ("value", [1.0, math.nan, 2.0, 3.0], "row 1: 'nan' is NaN or infinite; give"),
    ("value", [1.0, 2.0, 3.0, -math.inf], "row 3: '-inf' is NaN or infinite"),
    ("value", ["1", "2", "three", "4"], "row 2: 'three' cannot be read as numbers"),
    ("timestamp", [5, -1, 6, -2], r"row 1: '-1' is negative \(and 1 more rows\)"),
    ("timestamp", [5, 6, 1_700_000_000_000, 7], r"row 2: .*milliseconds.*divide"),
    ("timestamp", ["5", "6", "soon", "7"], "row 2: 'soon' cannot be read as whole"),
    ("user_id", [1.0, 2.0, 3.0, 4.0], "row 0 and all others: type DOUBLE cannot hold"),
    ("item_id", [[1], [2], [3], [4]], "type BIGINT.. cannot hold integers or strings"),
    ("value", [[1.0]] * 4, "cannot hold numbers; cast the column"),
    ("event", [[1]] * 4, "cannot hold strings"),
    ("timestamp", [True] * 4, "type BOOLEAN cannot hold whole seconds"),
    ("split", ["train", "valid", "tset", "test"], "row 2: 'tset' is no split; use"),
]


@pytest.mark.parametrize(("column", "values", "message"), BAD_COLUMNS)
def test_a_bad_value_is_named_with_file_column_row_and_mend(
    tmp_path, column, values, message
):
    refused(
        tmp_path,
        f"^log.csv, column '{column}', .*{message}",
        log=LOG | {column: values},
        items=None if column == "item_id" else ITEMS,
    )


def test_an_id_beyond_64_bits_is_refused(tmp_path):
    wide = pa.array([1, 2, 1 << 63, 3], pa.uint64())
    log = LOG | {"item_id": wide}
    refused(tmp_path, "row 2: '9223372036854775808' cannot be read", log=log)


def test_an_empty_log_is_refused(tmp_path):
    empty = pa.table(LOG).slice(0, 0)
    refused(tmp_path, "log.csv: has no rows; give a file with data", log=empty)


def test_an_empty_catalogue_is_refused(tmp_path):
    refused(tmp_path, "items.csv: has no rows", items=pa.table(ITEMS).slice(0, 0))


def test_an_item_outside_the_catalogue_is_refused(tmp_path):
    items = {"item_id": [1, 2], "title": ["pen", "ink"]}
    refused(
        tmp_path,
        r"log.csv, column 'item_id', row 2: '3' is not in the catalogue items.csv "
        r"\(and 1 more rows\), next: row 3: '3'; add the item there, or drop the rows",
        items=items,
    )


def test_an_item_twice_in_the_catalogue_is_refused(tmp_path):
    items = {"item_id": [1, 2, 3, 2], "title": ["pen", "ink", "cup", "inkwell"]}
    refused(
        tmp_path,
        "items.csv, column 'item_id', row 3: '2' is in the catalogue already",
        items=items,
    )


BAD_ITEMS = [
    ("item_id", [1, None, 3], "row 1: null is not allowed"),
    ("price", [1.0, 2.0, math.nan], "row 2: 'nan' is NaN or infinite"),
    ("embedding", [[1.0], [1.0, 2.0], [3.0]], "row 1: .*not as long as in row 0"),
    ("embedding", [[1.0], [math.nan], [3.0]], "row 1: .* holds null, NaN"),
    ("embedding", [[1.0], [3.0], None], "row 2: null is not allowed"),
    ("sid", [[1, 2], [1, -1], [1, 3]], "row 1: .*outside"),
    ("sid", [[1, 2], [1, 40_000], [1, 3]], "row 1: .*outside"),
    ("sid", [[1, 2], [1], [1, 3]], "row 1: .*not as long as in row 0"),
]


@pytest.mark.parametrize(("column", "values", "message"), BAD_ITEMS)
def test_a_bad_catalogue_value_is_named(tmp_path, column, values, message):
    refused(
        tmp_path,
        f"^items.csv, column '{column}', .*{message}",
        items=ITEMS | {column: values},
    )


def test_catalogue_columns_keep_their_types_and_order(tmp_path):
    items = {
        "item_id": [3, 1, 2],
        "title": ["cup", "", None],
        "price": [1.0, None, 2.0],
        "embedding": [[1.0, 2.0]] * 3,
        "sid": [[7, 8], [7, 9], [7, 8]],
    }
    report = write(tmp_path / "out", items=items)
    table = read_canonical(tmp_path / "out").items()
    assert table["item_id"].to_pylist() == [3, 1, 2]
    assert table["title"].to_pylist() == ["cup", "1", "2"]
    assert table["brand"].to_pylist() == ["", "", ""]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 2)
    assert table.schema.field("sid").type == pa.list_(pa.int16())
    assert report.counts["items_without_title_named_by_id"] == 2


def test_without_a_catalogue_it_is_made_from_the_log(tmp_path):
    report = write(tmp_path / "out", items=None)
    table = read_canonical(tmp_path / "out").items(["item_id", "title"])
    assert table.to_pydict() == {"item_id": [1, 2, 3], "title": ["1", "2", "3"]}
    assert report.items == report.items_in_log == 3


def test_ids_of_unlike_types_meet_as_strings(tmp_path):
    write(tmp_path / "out", items=ITEMS | {"item_id": ["1", "2", "3"]})
    log = read_canonical(tmp_path / "out")
    assert log.items()["item_id"].to_pylist() == ["1", "2", "3"]
    assert [row[1] for row in rows_of(tmp_path / "out")] == ["3", "2", "1", "3"]


def test_times_arrive_as_text_dates_or_numbers(tmp_path):
    # 2017-01-01 is day 17,167: 17,167 x 86,400 = 1,483,228,800; 11:53:26 adds 42,806.
    texts = ["2017-01-01", "2017-01-01 11:53:26", "1483228801", "1483228802.0"]
    write(tmp_path / "out", log=LOG | {"user_id": [1] * 4, "timestamp": texts})
    seconds = [row[2] - 1_483_228_800 for row in rows_of(tmp_path / "out")]
    assert seconds == [0, 1, 2, 42_806]


def test_arrow_streams_are_read_once_and_parts_hold_every_row(tmp_path):
    table = pa.table({"user_id": range(9), "item_id": [1] * 9, "timestamp": range(9)})
    write(tmp_path / "out", log=table.to_reader(max_chunksize=2), rows_per_part=4)
    log = read_canonical(tmp_path / "out")
    assert len(log.interactions_paths) == 1
    assert sum(batch.num_rows for batch in log.interactions()) == 9


def test_parts_are_cut_at_the_stated_size(tmp_path):
    num_rows = 700_000
    table = pa.table(
        {
            "user_id": np.arange(num_rows) % 1000,
            "item_id": np.ones(num_rows, dtype=np.int64),
            "timestamp": np.arange(num_rows)[::-1].copy(),
        }
    )
    report = write(tmp_path / "out", log=table, rows_per_part=1)
    log = read_canonical(tmp_path / "out")
    names = [path.name for path in log.interactions_paths]
    assert names == [f"part-{part:05d}.parquet" for part in range(len(names))]
    assert len(names) > 1
    assert sum(batch.num_rows for batch in log.interactions()) == num_rows
    # Every user's rows stand in falling time: all but the latest come too early.
    assert report.out_of_order_rows == num_rows - 1000
    assert report.users == 1000


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(1, 5))
def test_counts_do_not_depend_on_where_batches_are_cut(events, batch_rows):
    rows = [(user, time, item, n) for n, (user, time, item) in enumerate(events)]
    early = sum(
        any(u == user and t < time and n > row for u, t, _, n in rows)
        for user, time, _, row in rows
    )
    columns = zip(*sorted(rows), strict=True)
    names = ("user_id", "timestamp", "item_id", "file_row")
    table = pa.table(dict(zip(names, columns, strict=True)))
    counter = SortedRows(drop_duplicates=True)
    kept = list(counter.stream(table.to_batches(max_chunksize=batch_rows)))
    assert counter.num_out_of_order == early
    assert counter.num_users == len({user for user, *_ in rows})
    assert sum(batch.num_rows for batch in kept) == len(set(events))
    assert counter.num_duplicates == len(events) - len(set(events))


def test_the_report_can_be_read_back_from_the_manifest(tmp_path):
    report = write(tmp_path / "out")
    assert report_of(read_canonical(tmp_path / "out").manifest, report.folder) == report
