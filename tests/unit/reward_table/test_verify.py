"""Every single flipped bit of a table is found."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from sgrec_torchrec.reward_table import RewardTable, append_segment, build_reward_table
from sgrec_torchrec.reward_table.manifest import parse_manifest, render

pytestmark = pytest.mark.long

COLUMNS = {"aspect_a": [0.5, 0.25], "as_of": [3, 4], "history_hash": [7, 2**60]}


def flips(path: Path) -> int:
    """Flip each bit of the file in turn; returns how many went unseen."""
    whole = path.read_bytes()
    unseen = 0
    opened = RewardTable.open(path.parents[2])
    for nth in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[nth // 8] ^= 1 << (nth % 8)
        path.write_bytes(damaged)
        try:
            opened.verify()
        except ValueError as error:
            unseen += str(path) not in str(error)
        else:
            unseen += 1
    path.write_bytes(whole)
    return unseen


@pytest.mark.parametrize("name", [int, str], ids=["int", "text"])
def test_each_flipped_bit_of_each_file_is_found(write_pairs, tmp_path, name) -> None:
    table = tmp_path / "table"
    rows = [(name(1), name(10), 0.5), (name(2), name(11), 0.75)]
    build_reward_table(write_pairs(rows, **COLUMNS), table)
    append_segment(table, write_pairs(rows[:1], **one_row(COLUMNS)))
    files = sorted(table.glob("segments/*/*.bin"))
    assert len(files) == (15 if name is int else 23)
    assert [path for path in files if flips(path)] == []
    RewardTable.open(table).verify()


def one_row(columns: dict[str, list[float]]) -> dict[str, pa.Array]:
    return {name: pa.array(values[:1]) for name, values in columns.items()}


def test_each_flipped_bit_of_the_manifest_is_found(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 10, 0.5)], judge_version=["j"]), table)
    path = table / "manifest.json"
    whole = path.read_bytes()
    for nth in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[nth // 8] ^= 1 << (nth % 8)
        with pytest.raises(ValueError, match=r"manifest.json is damaged"):
            parse_manifest(path, bytes(damaged))
    opened = RewardTable.open(table)
    path.write_bytes(whole[:-1])
    for read in (opened.verify, lambda: RewardTable.open(table)):
        with pytest.raises(ValueError, match=r"manifest.json is damaged"):
            read()


def test_bytes_put_in_another_order_are_found(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 10, 0.5), (1, 11, 0.75)]), table)
    (path,) = table.glob("segments/*/rows.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[2:] + whole[:2])
    with pytest.raises(ValueError, match=r"rows.bin is damaged \(its SHA-256"):
        RewardTable.open(table).verify()


def test_a_file_that_went_is_named(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 10, 0.5)]), table)
    opened = RewardTable.open(table)
    (path,) = table.glob("segments/*/offsets.bin")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"offsets.bin"):
        opened.verify()


def test_a_manifest_of_another_size_is_found(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 10, 0.5)]), table)
    opened = RewardTable.open(table)
    (facts,) = opened.manifest.segments
    # Its own checksum fits, and so does that of every file.
    rows = replace(facts.files["rows"], num_bytes=facts.files["rows"].num_bytes + 4)
    grown = replace(facts, files=facts.files | {"rows": rows})
    manifest = replace(opened.manifest, segments=(grown,))
    (table / "manifest.json").write_text(render(manifest))
    with pytest.raises(ValueError, match=r"rows.bin has \d+ bytes, its manifest says"):
        opened.verify()
