"""What a user can get wrong: one clear error each, and the table as it was before."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.reward_table import (
    RewardTable,
    append_segment,
    build,
    build_reward_table,
    judged_files,
    manifest,
    segment,
)

NAN, INF = float("nan"), float("inf")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def old_table(write_pairs, tmp_path: Path) -> Path:
    """A table that must outlive whatever fails."""
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 1, 0.25), (2, 1, 0.5)]), table)
    return table


@pytest.fixture
def refuses(old_table: Path, tmp_path: Path) -> Callable[..., None]:
    """refuses(match, file, ...): neither build nor append takes it, nothing changes."""

    def check(match: str, file: object, error: type = ValueError, **options) -> None:
        before = tree(old_table)
        for target in (old_table, tmp_path / "new"):
            with pytest.raises(error, match=match):
                build_reward_table(file, target, **options)
        with pytest.raises(error, match=match):
            append_segment(old_table, file)
        assert tree(old_table) == before
        assert not (tmp_path / "new").exists()

    return check


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (NAN, r"column 'reward', row 2: nan is NaN or infinite; drop the row"),
        (INF, r"column 'reward', row 2: inf is NaN or infinite"),
        (-INF, r"column 'reward', row 2: -inf is NaN or infinite"),
        (1.25, r"column 'reward', row 2: 1.25 is outside the declared range \[0, 1\]"),
        (-0.5, r"column .reward., row 2: -0.5 is outside .* mend the value"),
        (None, r"column 'reward', row 2: null is not allowed; fill it in"),
    ],
)
def test_a_bad_reward_is_named(write_pairs, refuses, value, match) -> None:
    rows = [(1, 1, 0.5), (1, 2, 0.5), (1, 3, value), (1, 4, 0.5)]
    for reward_type in (pa.float32(), pa.float64()):
        file = write_pairs(rows, reward_type)
        refuses(f"^{file}, {match}", file)


def test_rows_count_through_the_batches(write_pairs, refuses, monkeypatch) -> None:
    monkeypatch.setattr(judged_files, "BATCH_ROWS", 3)
    rows = [(1, nth, 2.0 if nth in (7, 8) else 0.5) for nth in range(10)]
    good, bad = write_pairs(rows[:5]), write_pairs(rows)
    refuses(rf"^{bad}, column 'reward', row 7: 2.0 .* \(and 1 more rows", [good, bad])


def test_a_bad_aspect_is_named(write_pairs, tmp_path: Path) -> None:
    rows = [(1, 1, 0.5), (1, 2, 0.5)]
    for value, match in ((7.0, "7.0 is outside"), (NAN, "nan is NaN"), (None, "null")):
        file = write_pairs(rows, aspect_a=pa.array([0.5, value]))
        with pytest.raises(ValueError, match=rf"'aspect_a', row 1: {match}"):
            build_reward_table(file, tmp_path / "new")


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_a_null_id_is_named(write_pairs, tmp_path, column: str) -> None:
    for value in (1, "u"):
        rows = [(value, value, 0.5)] * 3
        place = ("user_id", "item_id").index(column)
        rows[1] = tuple(
            None if nth == place else one for nth, one in enumerate(rows[1])
        )
        file = write_pairs(rows)
        with pytest.raises(
            ValueError, match=rf"^{file}, column '{column}', row 1: nul"
        ):
            build_reward_table(file, tmp_path / "new")


@pytest.mark.parametrize("column", ["user_id", "item_id", "reward"])
def test_a_missing_column_is_named(write_pairs, refuses, column: str) -> None:
    file = write_pairs([(1, 1, 0.5)])
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    refuses(f"^{file}: no column '{column}' in .*; rename", file)


@pytest.mark.parametrize(
    ("column", "values", "match"),
    [
        ("user_id", [1.5], "type double is not int64 or string; cast"),
        ("item_id", pa.array([1], pa.uint64()), "type uint64 is not int64 or string"),
        ("reward", [1], "type int64 is not float32/64; cast the column"),
        ("aspect_a", ["high"], "type string is not float32/64"),
        ("as_of", [1.0], "type double is not int64"),
        ("judge_version", [3], "type int64 is not string"),
    ],
)
def test_a_wrong_type_is_named(write_pairs, refuses, column, values, match) -> None:
    file = write_pairs([(1, 1, 0.5)])
    judged = pq.read_table(file)
    if column in judged.column_names:
        judged = judged.drop_columns([column])
    pq.write_table(judged.append_column(column, pa.array(values)), file)
    refuses(f"^{file}, column '{column}', row 0 and all others: {match}", file)


def test_a_history_hash_of_wrong_type_or_alone_is_named(write_pairs, refuses) -> None:
    file = write_pairs([(1, 1, 0.5)], as_of=[1], history_hash=["x"])
    refuses("column 'history_hash', row 0 and all others: type string", file)
    file = write_pairs([(1, 1, 0.5)], history_hash=[5])
    refuses(f"^{file}: column 'history_hash' without 'as_of'; add", file)


def test_a_negative_as_of_is_named(write_pairs, tmp_path: Path) -> None:
    file = write_pairs([(1, 1, 0.5), (2, 1, 0.5)], as_of=[3, -4])
    with pytest.raises(ValueError, match=r"'as_of', row 1: -4 is negative; give the"):
        build_reward_table(file, tmp_path / "new")


def test_bad_metadata_is_named(write_pairs, refuses) -> None:
    file = write_pairs([(1, 1, 0.5)])
    judged = pq.read_table(file)
    pq.write_table(judged.replace_schema_metadata({"aspects": "no list"}), file)
    refuses("schema metadata 'aspects' is no JSON list", file)
    pq.write_table(judged.replace_schema_metadata({"aspects": '["absent"]'}), file)
    refuses("'aspects' lists 'absent', which is no column", file)


def test_files_of_two_kinds_are_refused(write_pairs, refuses) -> None:
    one, two = write_pairs([(1, 1, 0.5)]), write_pairs([("a", 1, 0.5)])
    refuses(
        f"^{two}: user_id holds strings, but holds integers in the first file",
        [one, two],
    )


def test_a_conflict_names_both_rows(write_pairs, refuses) -> None:
    one = write_pairs([(1, 5, 0.5), (9, 5, 0.5)])
    two = write_pairs([(7, 6, 0.5), (7, 5, 0.1), (9, 5, 0.75)])
    refuses(
        f"^{two}, row 2: user 9, item 5 has reward 0.75, but reward 0.5 in {one}, row "
        "1; drop one of them, or choose --on-conflict last or mean",
        [one, two],
    )
    texts = write_pairs([("a", "x", 0.5), ("b", "y", 0.5), ("a", "x", 0.25)])
    with pytest.raises(ValueError, match=r"row 2: user 'a', item 'x' has reward 0.25"):
        build_reward_table(texts, texts.parent / "new")


def test_a_conflict_of_aspects_is_one(write_pairs, tmp_path: Path) -> None:
    rows = [(1, 1, 0.5), (1, 1, 0.5)]
    file = write_pairs(rows, aspect_a=pa.array([0.5, 0.25]))
    match = r"row 1: .* reward 0.5 and aspects 0.25, but reward 0.5 and aspects 0.5 in"
    with pytest.raises(ValueError, match=match):
        build_reward_table(file, tmp_path / "new")


def test_two_prefixes_of_a_user_are_refused(write_pairs, tmp_path: Path) -> None:
    rows = [(1, 1, 0.5), (2, 2, 0.5), (1, 3, 0.5)]
    file = write_pairs(rows, as_of=[3, 3, 4])
    match = r"row 2: user 1 was judged at as_of 4, but at as_of 3 in .*, row 0; a user"
    with pytest.raises(ValueError, match=match):
        build_reward_table(file, tmp_path / "new")
    hashes = pa.array([8, 8, 9], pa.uint64())
    file = write_pairs(rows, as_of=[3, 3, 3], history_hash=hashes)
    match = r"at as_of 3, history_hash 9, but at as_of 3, history_hash 8 in"
    with pytest.raises(ValueError, match=match):
        build_reward_table(file, tmp_path / "new", on_conflict="last")


def test_a_file_that_is_missing_empty_or_none_is_named(
    write_pairs, refuses, tmp_path: Path
) -> None:
    refuses("absent.parquet is missing", tmp_path / "absent.parquet", FileNotFoundError)
    refuses("no Parquet file named", [], FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refuses(r"holds no \*.parquet", tmp_path / "empty", FileNotFoundError)
    file = write_pairs([(1, 1, 0.5)])
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    refuses(f"^{file}: has no rows", file)


def test_a_truncated_or_foreign_file_is_named(write_pairs, refuses) -> None:
    file = write_pairs([(1, nth, 0.5) for nth in range(1000)])
    whole = file.read_bytes()
    for left in (b"", whole[:3], whole[: len(whole) // 2], whole[:-1], b"x" * 100):
        file.write_bytes(left)
        refuses(f"^{file}: cannot be read .* write or copy it again", file)


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"sha256": "of all"}', '{"sha256": {"other.parquet": "0"}}']
)
def test_a_manifest_of_another_tool_is_none_of_ours(
    write_pairs, tmp_path: Path, text: str
) -> None:
    pairs = write_pairs([(1, 1, 0.5)])
    (pairs.parent / "manifest.json").write_text(text)
    build_reward_table(pairs, tmp_path / "new")
    assert RewardTable.open(tmp_path / "new").lookup([1], [1])[1].all()


def test_a_flipped_bit_is_found_where_pages_carry_checksums(
    write_pairs, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0)
    file = write_pairs([(1, nth, one) for nth, one in enumerate(noise.random(2000))])
    pq.write_table(
        *(pq.read_table(file), file),
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    whole = bytearray(file.read_bytes())
    whole[whole.index(noise.random(0).tobytes()) + 5000] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="cannot be read"):
        build_reward_table(file, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reward_range": (1.0, 0.0)}, r"reward_range \(1, 0\): give two finite"),
        ({"reward_range": (0.0, NAN)}, r"reward_range \(0, nan\)"),
        ({"aspect_range": (0.0, INF)}, r"aspect_range \(0, inf\)"),
        ({"on_conflict": "first"}, r"'first': choose one of error, last, mean"),
        ({"max_memory_gib": 0}, r"max_memory_gib 0: give more than 0"),
        ({"max_memory_gib": 1e-9}, r"needs 0.0 GiB, max_memory_gib is 1e-09: raise"),
    ],
)
def test_a_bad_setting_is_named(write_pairs, tmp_path, options, match) -> None:
    with pytest.raises(ValueError, match=match):
        build_reward_table(write_pairs([(1, 1, 0.5)]), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"on_conflict": "first"}, r"'first': choose one of error, last, mean"),
        ({"max_memory_gib": 0}, r"max_memory_gib 0: give more than 0"),
    ],
)
def test_a_bad_setting_of_an_append_is_named(
    write_pairs, old_table: Path, options, match
) -> None:
    before = tree(old_table)
    with pytest.raises(ValueError, match=match):
        append_segment(old_table, write_pairs([(5, 5, 0.5)]), **options)
    assert tree(old_table) == before


def test_a_folder_of_other_things_is_left_alone(write_pairs, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds 'thesis.txt' and no reward table"):
        build_reward_table(write_pairs([(1, 1, 0.5)]), tmp_path / "home")
    assert tree(tmp_path / "home") == {"thesis.txt": b"years of work"}


def test_a_manifest_without_its_files_is_refused(old_table: Path) -> None:
    (path,) = (old_table / "segments").glob("*/rows.bin")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"rows.bin is missing, although"):
        RewardTable.open(old_table)
    shutil.rmtree(old_table / "segments")
    with pytest.raises(FileNotFoundError, match=r"is missing, although"):
        RewardTable.open(old_table)


def test_a_file_cut_short_is_refused_at_once(old_table: Path) -> None:
    for path in (old_table / "segments").rglob("*.bin"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=rf"{path.name} has \d+ bytes, its manif"):
            RewardTable.open(old_table)
        path.write_bytes(whole)
    RewardTable.open(old_table)


def test_another_format_version_is_refused(old_table: Path, monkeypatch) -> None:
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 99)
    with pytest.raises(ValueError, match=r"format_version 1, this program reads 99"):
        RewardTable.open(old_table)


def test_a_damaged_manifest_is_refused(old_table: Path) -> None:
    path = old_table / "manifest.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["reward_range"] = [0, 2]
    for text in ("", "[]", "{}", json.dumps(content), whole + " "):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json is damaged"):
            RewardTable.open(old_table)


def test_a_full_disk_leaves_the_old_table(
    old_table: Path, write_pairs, tmp_path: Path, monkeypatch
) -> None:
    rows = [(nth, nth % 50, 0.5) for nth in range(20_000)]
    file = write_pairs(rows)
    before = tree(old_table)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 319_000, 330_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            for target in (old_table, tmp_path / "new"):
                with pytest.raises(OSError, match=r"no space to build .* Nothing was"):
                    build_reward_table(file, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(old_table) == before
    assert not (tmp_path / "new").exists()
    build_reward_table(file, old_table)
    assert len(RewardTable.open(old_table)) == 20_000


def test_a_failure_while_publishing_leaves_the_old_table(
    old_table: Path, write_pairs, monkeypatch
) -> None:
    before = tree(old_table)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment.os, "fsync", fail)
    with pytest.raises(OSError, match="no space to build the table"):
        append_segment(old_table, write_pairs([(5, 5, 0.5)]))
    monkeypatch.undo()
    left = tree(old_table)
    assert {name: left[name] for name in before} == before
    assert not [name for name in left if "building" in name]
    RewardTable.open(old_table).verify()


def test_what_a_killed_writer_left_goes_with_the_next(
    old_table: Path, write_pairs, monkeypatch
) -> None:
    def die(*_: object) -> None:
        os._exit(9)

    child = os.fork()
    if child == 0:
        build.publish = die  # type: ignore[assignment]
        append_segment(old_table, write_pairs([(5, 5, 0.5)]))
    os.waitpid(child, 0)
    assert [path for path in old_table.iterdir() if "building" in path.name]
    RewardTable.open(old_table).verify()
    (old_table / "segments" / "000077").mkdir()
    append_segment(old_table, write_pairs([(5, 5, 0.5)]))
    assert not [path for path in old_table.iterdir() if "building" in path.name]
    assert len(list((old_table / "segments").iterdir())) == 2


def test_parts_beside_other_files_are_refused_by_name(write_pairs, tmp_path) -> None:
    folder = tmp_path / "judged"
    folder.mkdir()
    for name in ("part-00000.parquet", "users.parquet"):
        write_pairs([(1, 1, 0.5)]).rename(folder / name)
    assert build_reward_table(folder, tmp_path / "table").num_pairs == 1
    write_pairs([(1, 2, 0.5)]).rename(folder / "more.parquet")
    with pytest.raises(ValueError, match=r"part-00000.parquet and more.parquet: name"):
        build_reward_table(folder, tmp_path / "other")
