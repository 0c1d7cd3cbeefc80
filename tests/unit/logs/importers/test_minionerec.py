"""MiniOneRec folders: sequences rebuilt from rows, and checked against each row."""

import json
from collections import Counter, defaultdict

import pyarrow as pa
import pytest

from sgrec_torchrec.logs.canonical import read_canonical
from sgrec_torchrec.logs.importers.locate import data_root
from sgrec_torchrec.logs.importers.minionerec import import_minionerec
from sgrec_torchrec.logs.importers.minionerec_files import read_rows

HEADER = "user_id,history_item_title,item_title,history_item_id,item_id"
VALID = [("u1", [1, 2], 3), ("u2", [1], 2), ("u1", [1, 2, 3], 1)]
TEST = [("u3", [2, 3], 0), ("u1", [2, 3, 1], 0)]
TRAIN = [("u4", [3], 1), ("u1", [1], 2)]
ITEMS = {
    "0": {
        "title": "Tape",
        "description": "['<b>Clear</b> &amp; wide', '<!-- a { b } -->', '']",
        "brand": "3M",
        "categories": "",
    },
    **{
        str(item): {"title": f"t{item}", "description": "", "brand": None}
        for item in (1, 2, 3)
    },
}
INDEX = {
    "0": ["<a_5>", "<b_6>"],
    "1": ["<a_5>", "<b_6>"],
    "2": ["<a_0>", "<b_9>"],
    "3": ["<a_1>", "<b_0>"],
}


def csv_text(rows):
    lines = [f'{user},"[]",t,"{history}",{item}' for user, history, item in rows]
    return "\n".join([HEADER, *lines]) + "\n"


def write_flat(folder, train=None):
    folder.mkdir()
    splits = {"valid": VALID, "test": TEST} | ({"train": train} if train else {})
    for split, rows in splits.items():
        (folder / f"{split}.csv").write_text(csv_text(rows))
    (folder / "item.json").write_text(json.dumps(ITEMS))
    (folder / "index.json").write_text(json.dumps(INDEX))
    return folder


def write_full(root, categories):
    for category in categories:
        for split, rows in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
            (root / split).mkdir(parents=True, exist_ok=True)
            path = root / split / f"{category}_5_2016-10-2018-11.csv"
            path.write_text(csv_text(rows))
        (root / "index").mkdir(exist_ok=True)
        (root / "index" / f"{category}.item.json").write_text(json.dumps(ITEMS))
        (root / "index" / f"{category}.index.json").write_text(json.dumps(INDEX))
    return root


@pytest.fixture
def folder(tmp_path):
    return write_flat(tmp_path / "data")


def events_of(out_dir):
    """(user, item, split) in global order."""
    table = pa.Table.from_batches(read_canonical(out_dir).interactions())
    rows = table.sort_by("timestamp").to_pylist()
    return [(row["user_id"], row["item_id"], row["split"]) for row in rows]


NUM_FULL_EVENTS = 12
"""u4: 3 1; u1: 1 2 3 1 0; u2: 1 2; u3: 2 3 0."""
TRAIN_EVENTS = [("u1", 1), ("u1", 2), ("u2", 1), ("u3", 2), ("u3", 3)]
VALID_EVENTS = [("u1", 3), ("u2", 2), ("u1", 1)]
TEST_EVENTS = [("u3", 0), ("u1", 0)]


def test_first_histories_are_train_and_rows_follow_in_order(folder, tmp_path):
    report = import_minionerec(str(folder), tmp_path / "out")
    assert events_of(tmp_path / "out") == [
        *((*event, "train") for event in TRAIN_EVENTS),
        *((*event, "valid") for event in VALID_EVENTS),
        *((*event, "test") for event in TEST_EVENTS),
    ]
    assert report.has_clock is False
    assert "train split absent, partly recovered" in report.note


def test_recovered_rows_are_counted(folder, tmp_path):
    counts = import_minionerec(str(folder), tmp_path / "out").counts
    # A first history of n items holds n - 1 (history, target) rows: 1 + 0 + 1.
    assert counts["train_rows_recovered_from_histories"] == 2
    assert counts["users_recovered_from_histories"] == 3
    assert counts["users_whose_only_train_event_is_undated"] == 1
    assert (counts["valid_rows"], counts["test_rows"]) == (3, 2)
    assert counts["rows_whose_history_disagrees"] == 0
    assert counts["items_whose_sid_is_taken_already"] == 1


def test_the_train_split_is_used_whole_where_it_is_there(tmp_path):
    # u1's first row is now in train: its history starts there.
    folder = write_flat(tmp_path / "data", train=TRAIN)
    report = import_minionerec(str(folder), tmp_path / "out")
    train = [event[:2] for event in events_of(tmp_path / "out") if event[2] == "train"]
    assert train[:4] == [("u4", 3), ("u4", 1), ("u1", 1), ("u1", 2)]
    assert sorted(train[4:]) == [("u2", 1), ("u3", 2), ("u3", 3)]
    assert report.counts["train_rows"] == 2
    assert "absent" not in report.note


@pytest.mark.parametrize("below", ["", "data/Amazon"])
def test_the_layout_of_a_clone_is_read(tmp_path, below):
    write_full(tmp_path / "clone" / below, ["Office_Products"])
    report = import_minionerec(str(tmp_path / "clone"), tmp_path / "out")
    assert report.counts["train_rows"] == 2
    assert report.rows == NUM_FULL_EVENTS


def test_one_of_several_categories_is_chosen_by_a_csv_file(tmp_path):
    root = write_full(tmp_path / "clone", ["Office", "Office_Products"])
    name = "Office_Products_5_2016-10-2018-11.csv"
    (root / "index" / "Office.item.json").write_text("not this one")
    with pytest.raises(ValueError, match="holds 2 categories; give one CSV file as"):
        import_minionerec(str(root), tmp_path / "out")
    report = import_minionerec(str(root / "valid" / name), tmp_path / "out")
    assert report.rows == NUM_FULL_EVENTS


def test_descriptions_are_joined_and_cleaned_of_html(folder, tmp_path):
    import_minionerec(str(folder), tmp_path / "out")
    item = read_canonical(tmp_path / "out").items().to_pylist()[0]
    assert item["description"] == "Clear & wide"
    assert (item["title"], item["brand"], item["sid"]) == ("Tape", "3M", [5, 6])


def test_a_folder_without_codes_is_taken(folder, tmp_path):
    (folder / "index.json").unlink()
    import_minionerec(str(folder), tmp_path / "out")
    assert "sid" not in read_canonical(tmp_path / "out").items().column_names


def refused(folder, tmp_path, message):
    with pytest.raises(ValueError, match=message):
        import_minionerec(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_history_that_disagrees_with_earlier_rows_is_refused(folder, tmp_path):
    rows = [*TEST, ("u2", [1, 3], 1), ("u3", [0], 1)]
    (folder / "test.csv").write_text(csv_text(rows))
    message = (
        r"test.csv, line 4, column 'history_item_id': user 'u2' has history \[1, 3\], "
        r"but the rows before it end with \[1, 2\] \(2 of 7 rows disagree\); sort each"
    )
    refused(folder, tmp_path, message)


BAD_ROWS = [
    ('u1,"[]",t,"[1, 2",3', "line 3, column 'history_item_id': '.1, 2' is no list"),
    ('u1,"[]",t,"[]",3', "line 3, column 'history_item_id': '..' is no list of at"),
    (
        'u1,"[]",t,"__import__(\'os\')",3',
        "line 3, column 'history_item_id'.*is no list",
    ),
    ('u1,"[]",t,"[1, \'x\']",3', "line 3, column 'history_item_id': 'x' is no item"),
    ('u1,"[]",t,"[1, -2]",3', "line 3, column 'history_item_id': -2 is no item id"),
    ('u1,"[]",t,"[1]",', "line 3, column 'item_id': '' is no item id"),
    ('u1,"[]",t,"[1]",3.5', "line 3, column 'item_id': '3.5' is no item id"),
    (',"[]",t,"[1]",3', "line 3: user_id is empty; fill it in"),
    ("u9", "line 3, column 'history_item_id': None is no list"),
]


@pytest.mark.parametrize(("line", "message"), BAD_ROWS)
def test_a_bad_row_is_named_with_its_line(folder, tmp_path, line, message):
    (folder / "valid.csv").write_text(csv_text(VALID[:1]) + line + "\n")
    refused(folder, tmp_path, f"valid.csv, {message}")


def test_lines_are_counted_in_the_file_where_a_cell_spans_two(folder):
    text = HEADER + '\nu1,"[]","two\nlines","[1]",2\nu1,"[]",t,oops,3\n'
    (folder / "valid.csv").write_text(text)
    with pytest.raises(ValueError, match="line 4, column 'history_item_id': 'oops'"):
        list(read_rows(folder / "valid.csv", "valid"))


BAD_FILES = [
    ("valid.csv", "user,item\na,1\n", "line 1: no column 'user_id'.*as MiniOneRec wri"),
    ("valid.csv", HEADER + "\n", "valid.csv: has no rows; give a file with data"),
    ("item.json", '{"0": ', "item.json: is no JSON .*; copy it again"),
    ("item.json", "[]", "item.json: holds no items; give a JSON object"),
    ("item.json", '{"x": {"title": "t"}}', "'x' is no item id; use whole numbers"),
    ("item.json", '{"0": {"brand": "t"}}', "item '0': has no title; give title"),
    ("index.json", '{"0": ["<a_1>"]}', "item '1': None is no SID; give one code"),
    ("index.json", '{"0": ["<b_1>", "<a_2>"]}', r"item '0': \['<b_1>'.* is no SID"),
    ("index.json", '{"0": ["<a_1>", 2]}', r"item '0': \['<a_1>', 2\] is no SID"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES)
def test_a_bad_file_is_named(folder, tmp_path, name, text, message):
    (folder / name).write_text(text)
    refused(folder, tmp_path, message)


def test_an_item_that_has_no_text_is_not_in_the_catalogue(folder, tmp_path):
    few = {item: ITEMS[item] for item in ("0", "1", "2")}
    (folder / "item.json").write_text(json.dumps(few))
    refused(folder, tmp_path, "'item_id', row 4: '3' is not in the catalogue .*json")


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "valid.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid.csv: not found; a MiniOneRec"):
        import_minionerec(str(folder), tmp_path / "out")


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    if not (data_root() / "office").is_dir():
        pytest.skip(f"{data_root() / 'office'} is absent; set SGREC_DATA")
    out_dir = tmp_path_factory.mktemp("office") / "out"
    return import_minionerec("office", out_dir), out_dir


def test_office_has_the_counts_of_its_readme(office):
    report, _ = office
    counts = report.counts
    assert (report.users, report.items, report.items_in_log) == (3_231, 3_459, 3_317)
    assert (counts["valid_rows"], counts["test_rows"]) == (4_866, 4_866)
    assert counts["train_rows_recovered_from_histories"] == 9_484
    assert counts["users_recovered_from_histories"] == 3_231
    assert counts["items_whose_sid_is_taken_already"] == 15


def test_every_office_row_finds_exactly_its_own_history(office):
    _, out_dir = office
    sequences = defaultdict(list)
    targets = defaultdict(list)
    for user, item, split in events_of(out_dir):
        if split != "train":
            targets[split].append((user, sequences[user][-10:], item))
        sequences[user].append(item)
    for split in ("valid", "test"):
        path = data_root() / "office" / f"{split}.csv"
        given = [(row.user, row.history, row.target) for row in read_rows(path, split)]
        assert targets[split] == given


def test_office_splits_follow_each_other_in_time(office):
    _, out_dir = office
    splits = [split for _, _, split in events_of(out_dir)]
    runs = [split for n, split in enumerate(splits) if n == 0 or splits[n - 1] != split]
    assert runs == ["train", "valid", "test"]
    assert Counter(splits) == {"train": 12_715, "valid": 4_866, "test": 4_866}


def test_a_field_may_be_longer_than_csv_takes_by_itself(tmp_path):
    path = tmp_path / "train.csv"
    long = "x" * 140_000
    path.write_text(f'user_id,history_item_id,item_id,titles\nu,[1],2,"{long}"\n')
    (row,) = read_rows(path, "train")
    assert (row.user, row.history, row.target) == ("u", [1], 2)
