"""The prepared folder: what survives a round trip, and what damage is reported."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.files.atomic import sha256_file, write_json
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.files.stage_keys import stage_key
from sgrec_torchrec.files.text_column import TextColumn, write_columns
from sgrec_torchrec.logs.canonical import file_facts, parquet_writer, write_parts
from sgrec_torchrec.logs.split import load_split, prepare_split


def prepare(tmp_path, sid=((1, 2), (3, 4))):
    """A log with string ids and every optional column."""
    folder = tmp_path / "canonical"
    folder.mkdir()
    table = pa.table(
        {
            "user_id": ["a", "a", "a", "b"],
            "item_id": ["y", "x", "y", "x"],
            "timestamp": [1, 2, 3, 1],
            "event": ["view", "buy", None, "view"],
            "value": pa.array([1.5, None, 2.0, 3.0], pa.float32()),
        }
    )
    write_parts(folder / "interactions", table.to_batches())
    items = pa.table(
        {
            "item_id": ["y", "x"],
            "title": ["Why", None],
            "sid": pa.array(sid, pa.list_(pa.int16())),
            "embedding": pa.array([[0.5, 1], [2, 3]], pa.list_(pa.float32(), 2)),
        }
    )
    with parquet_writer(folder / "items.parquet", items.schema) as writer:
        writer.write_table(items)
    facts = {"format_version": 1, "has_clock": True, "files": file_facts(folder)}
    write_json(folder / "manifest.json", facts)
    return prepare_split(folder, LogConfig(), tmp_path / "split")


def test_string_ids_events_and_values_survive(tmp_path):
    split = prepare(tmp_path)
    sequences = split.sequences
    assert split.user_ids == ["a", "b"]
    assert sequences.items_R.tolist() == [0, 1, 0, 1]
    # types are numbered by name: buy 0, view 1; a null is -1
    assert sequences.events_R.tolist() == [1, 0, -1, 1]
    np.testing.assert_array_equal(sequences.values_R, np.float32([1.5, np.nan, 2, 3]))
    assert sequences.has_value
    assert sequences.num_event_types == 2
    assert split.catalogue.titles == ["Why", ""]
    assert split.catalogue.texts == ["Why", ""]
    assert split.catalogue.sid_NL.tolist() == [[1, 2], [3, 4]]
    assert split.catalogue.embedding_ND.tolist() == [[0.5, 1], [2, 3]]


@pytest.mark.parametrize("name", ["items.parquet", "interactions/part-00000.parquet"])
def test_a_damaged_canonical_log_is_not_split(tmp_path, name):
    prepare(tmp_path)
    path = tmp_path / "canonical" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: bytes changed"):
        prepare_split(tmp_path / "canonical", LogConfig(), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("sid", [[[1, 2], [3]], [[1, 2], None]])
def test_a_sid_of_another_length_is_an_error(tmp_path, sid):
    with pytest.raises(ValueError, match="sid is null or of another length"):
        prepare(tmp_path, sid=sid)


def test_texts_and_ids_are_mapped_and_no_lists(tmp_path):
    prepare(tmp_path)
    split = load_split(tmp_path / "split")
    catalogue = split.catalogue
    texts = (catalogue.item_ids, catalogue.titles, catalogue.brands, catalogue.texts)
    columns = [*texts, catalogue.categories, split.user_ids]
    assert all(isinstance(column, TextColumn) for column in columns)
    maps = [
        [int(place, 16) for place in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith((f"{tmp_path}/split/items.arrow", "/split/users.arrow"))
    ]
    addresses = [pa.array(one, pa.large_string()).buffers()[2] for one in columns]
    addresses = [buffer.address for buffer in addresses if buffer.size]
    addresses.append(catalogue.embedding_ND.__array_interface__["data"][0])
    assert len(addresses) >= 5
    assert all(any(low <= at < end for low, end in maps) for at in addresses)


def test_a_split_of_before_the_mapped_files_opens(tmp_path):
    now = prepare(tmp_path)
    folder = tmp_path / "split"
    facts = json.loads((folder / "manifest.json").read_text())
    assert sorted(facts.pop("mapped")) == ["items.arrow", "users.arrow"]
    write_sealed(folder / "manifest.json", facts)
    for path in folder.glob("*.arrow"):
        path.unlink()
    before = load_split(folder)
    assert before.user_ids == now.user_ids == ["a", "b"]
    for name in ("item_ids", "titles", "brands", "categories", "texts"):
        assert getattr(before.catalogue, name) == getattr(now.catalogue, name)
    for name in ("embedding_ND", "sid_NL"):
        one, other = getattr(before.catalogue, name), getattr(now.catalogue, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_weights_of_before_the_mapped_files_go_with_a_split_made_again(tmp_path):
    prepare(tmp_path)
    folder = tmp_path / "split"
    key = stage_key("split", folder)
    facts = json.loads((folder / "manifest.json").read_text())
    del facts["mapped"]
    write_sealed(folder / "manifest.json", facts)
    assert stage_key("split", folder) == key


def test_the_bytes_are_compared_by_the_first_rank_of_a_host(tmp_path, monkeypatch):
    prepare(tmp_path)
    path = tmp_path / "split" / "users.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(b"ab")] ^= 1
    path.write_bytes(content)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"users\.arrow: truncated or changed \(sha"):
        load_split(tmp_path / "split")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("sgrec_torchrec.logs.split_store.sha256_file", None)
    assert load_split(tmp_path / "split").user_ids == ["`", "b"]
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"users\.arrow: truncated or changed \(size"):
        load_split(tmp_path / "split")


def test_a_mapped_file_of_another_log_is_refused(tmp_path):
    prepare(tmp_path)
    folder = tmp_path / "split"
    facts = json.loads((folder / "manifest.json").read_text())
    path = folder / "users.arrow"
    write_columns(path, {"user_id": pa.array(["a"], pa.large_string())})
    facts["mapped"][path.name]["sha256"] = sha256_file(path)
    write_sealed(folder / "manifest.json", facts)
    with pytest.raises(ValueError, match=r"users\.arrow: has 1 user ids, .* 2 users"):
        load_split(folder)
    del facts["mapped"][path.name]
    write_sealed(folder / "manifest.json", facts)
    with pytest.raises(ValueError, match=r"it names no users\.arrow"):
        load_split(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("sequences.parquet", "valid.parquet", "test.parquet", "items.parquet"),
        *("items.arrow", "users.arrow"),
    ],
)
def test_a_flipped_bit_or_a_cut_file_is_an_error_naming_it(tmp_path, name):
    prepare(tmp_path)
    path = tmp_path / "split" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: truncated or changed"):
        load_split(tmp_path / "split")
    path.write_bytes(content[:50])
    with pytest.raises(ValueError, match=f"{name}: truncated or changed"):
        load_split(tmp_path / "split")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"is in manifest\.json only"):
        load_split(tmp_path / "split")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("items", [[0, 1, 2], [1]], r"items_R\[2\] = 2 is outside \[0, 2\)"),
        ("items", [[0, -1, 0], [1]], r"items_R\[1\] = -1 is outside \[0, 2\)"),
        ("train_end", [0, 2], r"train_end_U\[1\] = 2 is outside \[0, 1\]"),
        ("valid_end", [-1, 0], r"valid_end_U\[0\] = -1 is outside \[0, 3\]"),
    ],
)
def test_sequences_out_of_range_are_refused_though_their_sums_fit(
    tmp_path, column, values, message
):
    prepare(tmp_path)
    path = tmp_path / "split" / "sequences.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    field = table.schema.field(column)
    table = table.set_column(place, field, [pa.array(values, field.type)])
    pq.write_table(table, path, write_page_checksum=True)
    facts = json.loads((tmp_path / "split" / "manifest.json").read_text())
    facts["files"][path.name]["sha256"] = sha256_file(path)
    write_sealed(tmp_path / "split" / "manifest.json", facts)
    with pytest.raises(ValueError, match=message):
        load_split(tmp_path / "split")


def test_an_absent_or_damaged_manifest_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prepared split"):
        load_split(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_split(tmp_path)
    write_json(tmp_path / "manifest.json", {"format_version": 99, "files": {}})
    with pytest.raises(ValueError, match="format_version 99"):
        load_split(tmp_path)
