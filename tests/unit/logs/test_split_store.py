"""The prepared folder: what survives a round trip, and what damage is reported."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.config import LogConfig
from sgrec_torchrec.files.atomic import sha256_file, write_json
from sgrec_torchrec.files.sealed_json import write_sealed
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


@pytest.mark.parametrize(
    "name", ["sequences.parquet", "valid.parquet", "test.parquet", "items.parquet"]
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
