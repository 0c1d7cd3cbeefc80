"""Any table: column mapping, kinds of files, and files that are not what they say."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.importers.table import import_table

ROWS = [("007", "p1", 30, 1.5), ("7", "p2", 20, 2.5), ("007", "p2", 10, 3.5)]
NAMES = ("uid", "sku", "ts", "value")
MAPPING = {"user_id": "uid", "item_id": "sku", "timestamp": "ts"}
SORTED = [("007", "p2", 10, 3.5), ("007", "p1", 30, 1.5), ("7", "p2", 20, 2.5)]


def write_csv(path, rows=ROWS, names=NAMES, delimiter=","):
    lines = [delimiter.join(map(str, row)) for row in (names, *rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path, rows=ROWS, **options):
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_jsonl(path):
    lines = [json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(out_dir):
    table = pa.Table.from_batches(read_canonical(out_dir).interactions())
    return list(zip(*table.to_pydict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("log.csv", write_csv),
        ("log.tsv", lambda path: write_csv(path, delimiter="\t")),
        ("log.jsonl", write_jsonl),
        ("log.parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_log(tmp_path, name, write):
    report = import_table(write(tmp_path / name), tmp_path / "out", columns=MAPPING)
    assert rows_of(tmp_path / "out") == SORTED
    assert report.users == 2


def test_a_compressed_file_is_read(tmp_path):
    plain = write_csv(tmp_path / "log.csv").read_bytes()
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(plain))
    import_table(tmp_path / "log.csv.gz", tmp_path / "out", columns=MAPPING)
    assert rows_of(tmp_path / "out") == SORTED


def test_a_folder_of_parquet_files_is_one_log(tmp_path):
    (tmp_path / "logs").mkdir()
    write_parquet(tmp_path / "logs" / "a.parquet", ROWS[:2])
    write_parquet(tmp_path / "logs" / "b.parquet", ROWS[2:])
    import_table(tmp_path / "logs", tmp_path / "out", columns=MAPPING)
    assert rows_of(tmp_path / "out") == SORTED


def test_the_catalogue_has_its_own_mapping(tmp_path):
    items = write_csv(tmp_path / "items.csv", [("p1", "pen"), ("p2", "ink")], "ab")
    import_table(
        write_csv(tmp_path / "log.csv"),
        tmp_path / "out",
        columns=MAPPING,
        items_path=items,
        item_columns={"item_id": "a", "title": "b"},
    )
    titles = read_canonical(tmp_path / "out").items()["title"].to_pylist()
    assert titles == ["pen", "ink"]


def refused(tmp_path, path, message, **options):
    options.setdefault("columns", MAPPING)
    with pytest.raises(ValueError, match=message) as caught:
        import_table(path, tmp_path / "out", **options)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_mapping_to_a_column_that_is_not_there_names_a_near_one(tmp_path):
    path = write_csv(tmp_path / "log.csv")
    wrong = MAPPING | {"user_id": "uidd"}
    message = r"no column 'uidd' \(mapped to 'user_id'\).*did you mean 'uid'\?"
    refused(tmp_path, path, message, columns=wrong)


def test_a_mapping_like_no_column_asks_to_be_mended(tmp_path):
    path = write_csv(tmp_path / "log.csv")
    wrong = MAPPING | {"user_id": "qqqq"}
    refused(tmp_path, path, "no column 'qqqq'.*mend the mapping", columns=wrong)


def test_a_mapping_of_an_unknown_canonical_name_lists_the_known(tmp_path):
    path = write_csv(tmp_path / "log.csv")
    wrong = MAPPING | {"user": "uid"}
    message = "cannot map 'uid' to 'user'; the columns are user_id, item_id"
    refused(tmp_path, path, message, columns=wrong)


def test_an_unmapped_column_is_named(tmp_path):
    path = write_csv(tmp_path / "log.csv")
    refused(tmp_path, path, "no column 'user_id'.*did you mean 'uid'", columns={})


def test_a_bad_cell_is_named_with_its_row(tmp_path):
    path = write_csv(tmp_path / "log.csv", [*ROWS, ("8", "p3", "yesterday", 1)])
    refused(
        tmp_path, path, r"column 'ts' \(timestamp\), row 3: 'yesterday' cannot be read"
    )


def test_an_empty_cell_is_a_null(tmp_path):
    path = write_csv(tmp_path / "log.csv", [*ROWS, ("", "p3", 7, 1)])
    refused(
        tmp_path, path, r"column 'uid' \(user_id\), row 3: null is not allowed here"
    )


def test_a_line_with_too_many_fields_is_named(tmp_path):
    path = write_csv(tmp_path / "log.csv", [*ROWS, ("8", "p3", 7, 1, 99)])
    refused(
        tmp_path, path, "row 3: has 5 fields in place of 4: '8,p3,7,1,99'; mend the row"
    )


def test_a_line_with_too_few_fields_is_named(tmp_path):
    path = write_csv(tmp_path / "log.csv", [*ROWS, ("8", "p3", 7)])
    refused(tmp_path, path, "row 3: has 3 fields in place of 4: '8,p3,7'; mend the row")


def test_a_column_that_appears_twice_is_named(tmp_path):
    path = write_csv(tmp_path / "log.csv", names=("uid", "sku", "ts", "uid"))
    refused(tmp_path, path, "column 'uid' appears twice; rename one")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"uid,sku,\xff\xfe\n")
    refused(tmp_path, tmp_path / "log.csv", r"cannot be read .*again as UTF-8 text")


def test_odd_names_and_quoted_cells_are_taken_as_they_are(tmp_path):
    path = tmp_path / "it's a log.csv"
    path.write_text('user\'s "id",sku,ts\n"a, ""b""",p,5\n', encoding="utf-8-sig")
    mapping = MAPPING | {"user_id": 'user\'s "id"'}
    import_table(path, tmp_path / "out", columns=mapping)
    assert rows_of(tmp_path / "out") == [('a, "b"', "p", 5)]


def test_a_broken_json_line_is_named(tmp_path):
    path = write_jsonl(tmp_path / "log.jsonl")
    path.write_text(path.read_text() + '{"uid": "8", "sku":\n')
    refused(tmp_path, path, "row 3: is no JSON object: .*; mend the row")


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.parquet"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, tmp_path / name, "is empty; give a file with data")


def test_a_header_without_rows_is_refused(tmp_path):
    refused(tmp_path, write_csv(tmp_path / "log.csv", []), "has no rows; give a file")


def test_a_truncated_parquet_is_refused(tmp_path):
    path = write_parquet(tmp_path / "log.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    refused(tmp_path, path, "is no readable Parquet .*; copy it again")


def test_a_flipped_byte_in_a_page_with_checksum_is_refused(tmp_path):
    rows = [(str(n), "p", n, 1.0) for n in range(2000)]
    path = write_parquet(tmp_path / "log.parquet", rows, write_page_checksum=True)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 3] ^= 4
    path.write_bytes(bytes(flipped))
    refused(
        tmp_path, path, r"is no readable Parquet \(.*(CRC|checksum).*; copy it again"
    )


def test_an_unknown_kind_of_file_lists_the_known(tmp_path):
    path = write_csv(tmp_path / "log.xlsx")
    refused(tmp_path, path, r"unknown kind of file; give one of .parquet, .csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv: not found; check the"):
        import_table(tmp_path / "nowhere.csv", tmp_path / "out")
