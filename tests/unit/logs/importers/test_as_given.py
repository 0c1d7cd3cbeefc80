"""Any table is read as it was given: nothing is guessed."""

import csv
import gzip
import json
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import (
    LOG,
    NAMES,
    NOON_S,
    event,
    imported,
    json_lines,
    parquet,
    refused,
    rows_of,
    write,
)

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.import_report import time_warnings
from sgrec_torchrec.logs.importers.table import import_table


@pytest.mark.parametrize("name", ["l[0-9].csv", "l*.csv", "l?.csv", "{l,m}.csv"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    for other in ("l1.csv", "lx.csv", "m.csv"):
        write(tmp_path / other, LOG.replace("u,", "wrong,"))
    assert imported(write(tmp_path / name, LOG), tmp_path) == [("u", "a", NOON_S)]


@pytest.mark.parametrize("folder", ["user_id=7", "event=buy", "timestamp=1"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_words_in_the_path_of_a_file_are_no_columns(
    tmp_path: Path, folder: str, ending: str
) -> None:
    text = LOG
    if ending == "jsonl":
        row = dict(zip(NAMES, ("u", "a", NOON_S), strict=True))
        text = json.dumps(row) + "\n"
    path = write(tmp_path / folder / f"log.{ending}", text)
    assert imported(path, tmp_path) == [("u", "a", NOON_S)]


def test_fields_of_csv_may_hold_lines_however_many(tmp_path: Path) -> None:
    text = "x\n" * 3
    items = tmp_path / "items.csv"
    with items.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("item_id", "title", "description"))
        writer.writerows((f"i{n}", f'T "{n}"', text * 40) for n in range(200))
    log = write(tmp_path / "log.csv", LOG.replace(",a,", ",i7,"))
    imported(log, tmp_path, items_path=items)
    table = read_canonical(tmp_path / "out").items()
    assert table["title"].to_pylist() == [f'T "{n}"' for n in range(200)]
    assert set(table["description"].to_pylist()) == {text * 40}


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    lines = ["user_id\titem_id\ttimestamp", 'u\t"a\t5', 'u\tb"\t6', 'u\t"c"\t7']
    path = write(tmp_path / "log.tsv", "\n".join(lines) + "\n")
    assert [row[1] for row in imported(path, tmp_path)] == ['"a', 'b"', '"c"']


def test_another_delimiter_is_offered_and_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", LOG.replace(",", ";"))
    refused(path, tmp_path, r"parted by semicolons: --delimiter ';'")
    assert imported(path, tmp_path, delimiter=";") == [("u", "a", NOON_S)]


@pytest.mark.parametrize(
    "header", [",user_id,item_id,timestamp", "user_id,item_id,timestamp,,"]
)
def test_columns_without_a_name_are_left_out_and_named(
    tmp_path: Path, header: str
) -> None:
    cells = {"user_id": "u", "item_id": "a", "timestamp": str(NOON_S), "": "0"}
    row = ",".join(cells[name] for name in header.split(","))
    path = write(tmp_path / "log.csv", f"{header}\n{row}\n")
    report = import_table(path, tmp_path / "out")
    assert rows_of(tmp_path / "out") == [("u", "a", NOON_S)]
    assert "column 'unnamed' is left out" in "\n".join(report.lines())


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz"])
def test_a_byte_order_mark_is_no_part_of_a_name(
    tmp_path: Path, mark: str, ending: str
) -> None:
    text = {
        "csv": LOG,
        "csv.gz": LOG,
        "tsv": LOG.replace(",", "\t"),
        "jsonl": json.dumps(dict(zip(NAMES, ("u", "a", NOON_S), strict=True))),
    }[ending]
    data = (mark + text).encode()
    path = tmp_path / f"log.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert imported(path, tmp_path) == [("u", "a", NOON_S)]


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01",
        "01-02-2024",
        "1:30",
        "BBD05AE7-3F00-4000-8000-00000000000A",
        "1e5",
        "007",
        "true",
        '"quoted"',
    ],
)
def test_a_text_of_json_stays_the_text_that_it_is(tmp_path: Path, text: str) -> None:
    log = json_lines(tmp_path / "log.jsonl", event(user_id=text, item_id=text))
    items = json_lines(
        tmp_path / "items.jsonl", {"item_id": text, "title": text, "brand": text}
    )
    ((user, item, _),) = imported(log, tmp_path, items_path=items)
    table = read_canonical(tmp_path / "out").items()
    assert {user, item, *table["title"].to_pylist(), *table["brand"].to_pylist()} == {
        text
    }


def test_numbers_and_texts_of_one_column_of_json_are_texts(tmp_path: Path) -> None:
    rows = [event(user_id=7, event="buy"), event(user_id="x", event=1)]
    path = json_lines(tmp_path / "log.jsonl", *rows)
    assert sorted(imported(path, tmp_path)) == [
        ("7", "a", NOON_S, "buy"),
        ("x", "a", NOON_S, "1"),
    ]


def test_integers_of_json_stay_integers(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "log.jsonl", event(user_id=7), event(user_id=-1))
    assert [row[0] for row in imported(path, tmp_path)] == [-1, 7]


@pytest.mark.parametrize("value", [["p", "q"], {"x": 1}])
def test_what_json_nests_is_no_text(tmp_path: Path, value: Any) -> None:
    log = json_lines(tmp_path / "log.jsonl", event())
    items = json_lines(
        tmp_path / "items.jsonl",
        {"item_id": "a", "title": "t", "description": value},
        {"item_id": "b", "title": "t", "description": "plain"},
    )
    refused(
        log, tmp_path, "column 'description'.*cannot hold strings", items_path=items
    )
    refused(log, tmp_path, "some rows.*in place of lists and obj", items_path=items)


def test_lists_of_json_become_vectors_and_codes(tmp_path: Path) -> None:
    log = json_lines(tmp_path / "log.jsonl", event())
    item = {"item_id": "a", "title": "t", "embedding": [1, 2.5], "sid": [3, 4]}
    imported(log, tmp_path, items_path=json_lines(tmp_path / "items.jsonl", item))
    table = read_canonical(tmp_path / "out").items()
    assert table["embedding"].to_pylist() == [[1.0, 2.5]]
    assert table["sid"].to_pylist() == [[3, 4]]


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("2024-01-01 12:00:00", NOON_S),
        ("2024-01-01T12:00:00Z", NOON_S),
        ("2024-01-01T12:00:00+02:00", NOON_S - 7200),
        ("2024-01-01 12:00:00-0530", NOON_S + 19_800),
        ("2024-01-01 12:00:00 America/New_York", NOON_S + 18_000),
        ("2024-07-01 12:00:00 Europe/Berlin", 1_719_828_000),
        ("1704110400", NOON_S),
        ("1704110400.75", NOON_S),
        ("2024-01-01 12:00:00.75", NOON_S),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_times_name_their_zone(
    tmp_path: Path, ending: str, text: str, second: int
) -> None:
    path = tmp_path / f"log.{ending}"
    if ending == "csv":
        write(path, LOG.replace(str(NOON_S), text))
    elif ending == "jsonl":
        json_lines(path, event(timestamp=text))
    else:
        parquet(path, user_id=["u"], item_id=["a"], timestamp=[text])
    assert imported(path, tmp_path) == [("u", "a", second)]


def test_the_report_shows_the_times(tmp_path: Path) -> None:
    text = LOG + "u,b,1704117600\n"
    report = import_table(write(tmp_path / "log.csv", text), tmp_path / "out")
    assert "times: 2024-01-01 12:00:00 to 2024-01-01 14:00:00 (UTC)" in report.lines()
    assert not [line for line in report.lines() if line.startswith("warning")]


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (20_210_331, 20_220_101, "before 1990.*2024-01-31"),
        (44_000, 45_000, "before 1990.*spreadsheet"),
        (0, NOON_S, "before 1990.*not known"),
        (NOON_S, NOON_S + 2 * 86_400, "after tomorrow"),
    ],
)
def test_odd_times_are_warned_of(first: int, last: int, words: str) -> None:
    assert not time_warnings(NOON_S - 10, NOON_S, now=NOON_S)
    (warning,) = time_warnings(first, last, now=NOON_S)
    assert pa.compute.match_substring_regex(warning, words).as_py()


def test_an_ordinal_must_be_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", LOG.replace(str(NOON_S), "2.5"))
    refused(path, tmp_path, "'2.5' is no whole number", has_clock=False)


EVENT = {"event": "kind"}


def part(folder: Path, number: int, **columns: Any) -> Path:
    return parquet(folder / f"part-{number}.parquet", **columns)


def test_a_folder_has_the_columns_of_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    part(folder, 0, user_id=["u"], item_id=["a"], timestamp=[NOON_S])
    part(folder, 1, value=[2.5], user_id=["v"], item_id=["a"], timestamp=[NOON_S])
    assert imported(folder, tmp_path) == [
        ("u", "a", NOON_S, None),
        ("v", "a", NOON_S, 2.5),
    ]


@pytest.mark.parametrize(
    ("lacks", "has", "words"),
    [
        ([0], [1], "part-0.parquet has no such column, part-1.parquet has"),
        ([1], [0], "part-1.parquet has no such column, part-0.parquet has"),
        ([0, 2, 3], [1], r"part-0.parquet \(and 2 more files\) has no such column"),
    ],
)
def test_a_refusal_names_the_files_that_lack_the_column(
    tmp_path: Path, lacks: list[int], has: list[int], words: str
) -> None:
    folder = tmp_path / "log"
    rows = {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [NOON_S] * 2}
    for number in lacks:
        part(folder, number, **rows)
    for number in has:
        part(folder, number, **rows, kind=["buy", "view"])
    refused(folder, tmp_path, f"'kind' .event.*: null .*; {words}", columns=EVENT)


def test_a_null_in_a_column_that_all_files_have_names_none(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    part(folder, 0, user_id=["u"], item_id=["a"], timestamp=[NOON_S], event=["buy"])
    none = pa.array([None], pa.string())
    part(folder, 1, user_id=["u"], item_id=["a"], timestamp=[NOON_S], event=none)
    assert "no such column" not in refused(folder, tmp_path, "row 1: null is not")


def test_a_part_without_rows_decides_no_type(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    empty = pa.array([], pa.float64())
    part(folder, 0, user_id=empty, item_id=empty, timestamp=empty)
    part(folder, 1, user_id=["v"], item_id=["a"], timestamp=[NOON_S])
    assert imported(folder, tmp_path) == [("v", "a", NOON_S)]


def test_folders_of_a_partition_are_a_column(tmp_path: Path) -> None:
    folder = tmp_path / "event=no" / "log"
    for name in ("view", "a%20b"):
        part(
            folder / f"event={name}",
            0,
            user_id=["u"],
            item_id=["a"],
            timestamp=[NOON_S],
        )
    report = import_table(folder, tmp_path / "out")
    assert report.duplicate_rows == 0
    assert rows_of(tmp_path / "out") == [
        ("u", "a", NOON_S, "a b"),
        ("u", "a", NOON_S, "view"),
    ]


@pytest.mark.parametrize(
    "other",
    [
        pa.array([1], pa.timestamp("s")),
        pa.array(["1970-01-01"]),
        pa.array([0.5]),
        pa.array([1], pa.timestamp("s", tz="UTC")),
    ],
)
def test_files_of_unlike_types_are_both_named(tmp_path: Path, other: pa.Array) -> None:
    folder = tmp_path / "log"
    part(folder, 0, user_id=["u"], item_id=["a"], timestamp=[NOON_S])
    part(folder, 1, user_id=["v"], item_id=["a"], timestamp=other)
    message = refused(folder, tmp_path, "part-1.*column 'timestamp'.*part-0")
    assert "one type and unit" in message


def test_like_types_of_files_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    moment = pa.array([NOON_S * 1000], pa.timestamp("ms"))
    later = pa.array([(NOON_S + 1) * 10**9], pa.timestamp("ns"))
    few = pa.array([3], pa.int16())
    part(folder, 0, user_id=few, item_id=[1], timestamp=moment)
    part(folder, 1, user_id=[4], item_id=[1], timestamp=later)
    assert imported(folder, tmp_path) == [(3, 1, NOON_S), (4, 1, NOON_S + 1)]


def test_a_folder_of_other_files_is_refused_by_name(tmp_path: Path) -> None:
    part(tmp_path / "log", 0, user_id=["u"], item_id=["a"], timestamp=[NOON_S])
    write(tmp_path / "log" / "more.csv", LOG)
    refused(tmp_path / "log", tmp_path, "more.csv is none")


WORDS = st.text(
    string.ascii_letters + string.digits + ",;\"'-:\u00e9 ", min_size=1, max_size=8
)
IDS = WORDS.filter(
    lambda text: (
        text == text.strip()
        and text.lower() not in ("nan", "null", "none", "")
        and not text.startswith("<")
    )
)
EVENTS = st.lists(
    st.tuples(IDS, IDS, st.integers(0, 10**10), WORDS, st.none() | st.integers(-9, 9)),
    min_size=1,
    max_size=8,
)


@pytest.mark.long
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(events=EVENTS)
def test_every_form_of_a_table_is_the_same_log(
    tmp_path: Path, events: list[tuple[Any, ...]]
) -> None:
    names = (*NAMES, "event", "value")
    rows = [dict(zip(names, one, strict=True)) for one in events]
    paths = [
        tmp_path / f"log.{ending}" for ending in ("csv", "tsv", "jsonl", "parquet")
    ]
    with paths[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["\t".join(names)]
    for row in rows:
        lines.append("\t".join("" if one is None else str(one) for one in row.values()))
    paths[1].write_text("\n".join(lines) + "\n")
    json_lines(paths[2], *rows)
    columns = {name: [row[name] for row in rows] for name in names}
    values = pa.array(columns.pop("value"), pa.float64())
    parquet(paths[3], **columns, value=values)
    found = []
    for path in paths:
        import_table(path, tmp_path / "out")
        found.append(rows_of(tmp_path / "out"))
    # A column of values that holds none is left out where the form can tell.
    lengths = {len(row) for one in found for row in one}
    shown = [[row[: min(lengths)] for row in one] for one in found]
    assert shown[1:] == shown[:1] * 3
    assert lengths == {5} or all(row["value"] is None for row in rows)
