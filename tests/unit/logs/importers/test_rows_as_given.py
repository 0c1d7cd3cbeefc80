"""Bad rows are told of together, or dropped; nothing is left out unsaid."""

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tables import LOG, NOON_S, imported, parquet, refused, rows_of, write

from sgrec_torchrec.logs.import_report import DROPPED_ITEMS, DROPPED_LOG, ImportReport
from sgrec_torchrec.logs.importers.table import check_table, import_table


@pytest.mark.parametrize("text", ["nan", "NULL", "None", "\\N", " ", "<NA>", "null "])
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_missing_id_is_no_id(tmp_path: Path, name: str, text: str) -> None:
    ids = {"user_id": "u", "item_id": "a"} | {name: text}
    path = parquet(
        tmp_path / "l.parquet", timestamp=[5], **{k: [v] for k, v in ids.items()}
    )
    refused(path, tmp_path, f"column '{name}', row 0: .*stands for a missing id")


@pytest.mark.parametrize("text", ["a ", "\ta", "\ufeffa", "a\u00a0"])
def test_blanks_at_the_ends_of_an_id_are_refused(tmp_path: Path, text: str) -> None:
    path = parquet(tmp_path / "l.parquet", user_id=["u"], item_id=[text], timestamp=[5])
    refused(path, tmp_path, "begins or ends with blanks")


def test_an_id_that_no_server_takes_is_refused(tmp_path: Path) -> None:
    ids = ["x" * 256, "x" * 257]
    path = parquet(
        tmp_path / "l.parquet", user_id=ids, item_id=["a"] * 2, timestamp=[5] * 2
    )
    refused(path, tmp_path, "row 1: .*longer than 256 characters")


def test_integers_of_a_warehouse_are_integers(tmp_path: Path) -> None:
    whole = pa.array([12, 7]).cast(pa.decimal128(38, 0))
    path = parquet(
        tmp_path / "l.parquet", user_id=whole, item_id=[1, 1], timestamp=[5, 6]
    )
    assert [row[0] for row in imported(path, tmp_path)] == [7, 12]


def test_wide_integers_are_told_to_become_text(tmp_path: Path) -> None:
    wide = pa.array([2**63], pa.uint64())
    path = parquet(tmp_path / "l.parquet", user_id=wide, item_id=[1], timestamp=[5])
    refused(path, tmp_path, "cast the column to text")


def test_a_value_may_be_null_in_some_rows_or_in_all(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "user_id": ["u", "v"],
        "item_id": ["a", "a"],
        "timestamp": [5, 6],
    }
    some = parquet(tmp_path / "some.parquet", value=[None, 2.0], **columns)
    assert [row[3] for row in imported(some, tmp_path)] == [None, 2.0]
    none = parquet(tmp_path / "none.parquet", value=pa.nulls(2), **columns)
    assert [len(row) for row in imported(none, tmp_path)] == [3, 3]


def test_left_out_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.csv", "user_id,item_id,timestamp,Event,zzz\nu,a,5,b,1\n"
    )
    items = write(tmp_path / "items.csv", "item_id,title,Description\na,t,d\n")
    report = import_table(log, tmp_path / "out", items_path=items)
    text = "\n".join(report.warnings)
    assert "'Event' is left out; if it is the event: event=Event" in text
    assert "'zzz' is left out\n" in text
    assert "description=Description" in text


def test_item_columns_without_a_catalogue_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", LOG)
    refused(path, tmp_path, "--item-column", item_columns={"title": "name"})


def test_all_items_are_named_by_id_where_no_catalogue_is_given(tmp_path: Path) -> None:
    report = import_table(write(tmp_path / "log.csv", LOG), tmp_path / "out")
    assert report.counts["items_without_title_named_by_id"] == 1


MESSY = (
    "uid,item_id,ts,value\n"
    "u,a,5,1\n"
    "u,b,soon,1\n"
    "nan,c,6,1\n"
    "u,zz,7,1\n"
    "short,row\n"
    "u,a,8,x\n"
    "v,a,9,1\n"
)
COLUMNS = {"user_id": "uid", "timestamp": "ts"}
ITEMS = "item_id,title\na,A\nb,B\nc,C\n"


def test_all_faults_are_told_at_once_by_the_names_of_the_file(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", MESSY)
    items = write(tmp_path / "items.csv", ITEMS)
    message = refused(log, tmp_path, "5 kinds", columns=COLUMNS, items_path=items)
    assert "row 4: has 2 fields in place of 4: 'short,row'" in message
    assert "column 'uid' (user_id), row 2: 'nan'" in message
    assert "column 'ts' (timestamp), row 1: 'soon'" in message
    assert "column 'value', row 5: 'x'" in message
    assert "column 'item_id', row 3: 'zz' is not in the catalogue" in message


def test_both_files_are_told_of_what_they_lack(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", LOG.replace("user_id", "who"))
    items = write(tmp_path / "items.csv", ITEMS.replace("title", "words"))
    message = refused(log, tmp_path, "no column 'user_id'", items_path=items)
    assert "no column 'title'" in message


def test_bad_rows_are_dropped_with_their_reasons(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", MESSY)
    items = write(tmp_path / "items.csv", ITEMS + "b,again\n")
    report = import_table(
        log, tmp_path / "out", columns=COLUMNS, items_path=items, bad_rows="drop"
    )
    assert rows_of(tmp_path / "out") == [("u", "a", 5, 1.0), ("v", "a", 9, 1.0)]
    assert (report.rows_read, report.rows, report.dropped_rows) == (7, 2, 5)
    with (tmp_path / "out" / DROPPED_LOG).open(newline="") as file:
        dropped = {int(row["row"]): row for row in csv.DictReader(file)}
    assert sorted(dropped) == [1, 2, 3, 4, 5]
    assert "'ts' (timestamp) cannot be read" in dropped[1]["reason"]
    assert dropped[4]["text"] == "short,row"
    with (tmp_path / "out" / DROPPED_ITEMS).open(newline="") as file:
        (again,) = csv.DictReader(file)
    assert (again["row"], again["title"]) == ("3", "again")
    assert str(tmp_path / "out" / DROPPED_LOG) in "\n".join(report.lines())


def test_nothing_good_is_no_log(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", LOG.replace(str(NOON_S), "soon"))
    refused(path, tmp_path, "no row is good", bad_rows="drop")


def test_a_check_reports_and_writes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", LOG)
    report = check_table(path)
    assert isinstance(report, ImportReport)
    assert (report.rows, report.users) == (1, 1)
    assert "only checked" in report.lines()[0]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="no column 'user_id'"):
        check_table(write(path, LOG.replace("user_id", "who")))


@pytest.mark.parametrize(("rule", "rows"), [("keep", 4), ("drop", 3)])
def test_duplicates_are_equal_in_all_columns(
    tmp_path: Path, rule: str, rows: int
) -> None:
    text = "user_id,item_id,timestamp,value\nu,a,5,1\nu,a,5,2\nu,a,5,1\nu,b,5,\n"
    path = write(tmp_path / "log.csv", text)
    report = import_table(path, tmp_path / "out", duplicates=rule)
    assert (report.rows, report.duplicate_rows) == (rows, 1)
    with pytest.raises(ValueError, match="1 rows are equal"):
        import_table(path, tmp_path / "other", duplicates="error")
    assert not (tmp_path / "other").exists()
