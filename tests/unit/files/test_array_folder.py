"""A folder of arrays comes back whole, or the file at fault is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.files import array_folder
from sgrec_torchrec.files.array_folder import read_arrays, write_arrays
from sgrec_torchrec.files.sealed_json import write_sealed

ARRAYS = {
    "offsets": np.array([0, 2, 3], dtype=np.int64),
    "weights": np.array([[0.5, 2.0, -1.0]], dtype=np.float32),
}
FACTS = {"format_version": 3, "decay": 0.5, "made_from": {"seed": 1}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "stage" / "stage.json"
    write_arrays(path, ARRAYS, FACTS)
    return path


def read(
    path: Path,
    names: tuple[str, ...] = tuple(ARRAYS),
    version: int = 3,
    verify: bool = True,
):
    return read_arrays(
        path,
        names,
        {"decay": float},
        format_version=version,
        what="the stage",
        verify=verify,
    )


def edit(path: Path, **changes: object) -> None:
    manifest = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in manifest.items() if value is not None}
    write_sealed(path, kept)


def test_arrays_and_facts_come_back_mapped_and_read_only(path: Path) -> None:
    arrays, facts = read(path)
    assert facts == {"decay": 0.5}
    assert arrays.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype
        assert isinstance(arrays[name], np.memmap)
        assert not arrays[name].flags.writeable
    assert json.loads(path.read_text())["made_from"] == {"seed": 1}


def test_only_the_named_arrays_are_looked_at(path: Path) -> None:
    (path.parent / "weights.npy").unlink()
    arrays, _ = read(path, ("offsets",))
    assert list(arrays) == ["offsets"]


def test_a_second_write_replaces_the_whole_folder(path: Path) -> None:
    write_arrays(path, {"offsets": ARRAYS["offsets"] + 1}, FACTS)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        *("offsets.npy", "stage.json")
    ]
    assert read(path, ("offsets",))[0]["offsets"].tolist() == [1, 3, 4]


def test_an_interrupted_write_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(array_folder, "write_sealed", crash)
    with pytest.raises(KeyboardInterrupt):
        write_arrays(path, {"offsets": np.zeros(9)}, FACTS)
    assert read(path)[0]["offsets"].tolist() == [0, 2, 3]
    assert [folder.name for folder in path.parent.parent.iterdir()] == ["stage"]


def test_missing_files_are_named(path: Path) -> None:
    (path.parent / "weights.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights.npy is missing: build the s"):
        read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"stage.json is missing: build the s"):
        read(path)


@pytest.mark.parametrize(
    "changes", [{"decay": None}, {"sha256": None}, {"sha256": 7}, {"sha256": [1]}]
)
def test_a_manifest_without_its_facts_is_damaged(path: Path, changes: dict) -> None:
    edit(path, **changes)
    with pytest.raises(ValueError, match=r"stage.json is damaged .*: build the stage"):
        read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_manifest_that_is_no_object_is_damaged(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"stage.json is damaged .*: build the stage"):
        read(path)


def test_an_array_of_another_sum_or_none_is_damaged(path: Path) -> None:
    np.save(path.parent / "weights.npy", ARRAYS["weights"] * 2)
    with pytest.raises(ValueError, match=r"weights.npy is damaged \(its SHA-256 is no"):
        read(path)
    edit(path, sha256={})
    with pytest.raises(ValueError, match=r"offsets.npy is damaged"):
        read(path, ("offsets",))


def test_another_format_is_told_from_damage(path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"format_version 3, this program reads 4: build the stage"
    ):
        read(path, version=4)


def test_who_does_not_verify_reads_no_array_but_sees_a_cut_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_folder, "sha256_file", None)
    arrays, _ = read(path, verify=False)
    assert arrays["offsets"].tolist() == [0, 2, 3]
    with (path.parent / "weights.npy").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=r"weights.npy is damaged \(its size is not"):
        read(path, verify=False)


def test_a_folder_of_before_the_sizes_opens_to_who_does_not_verify(path: Path) -> None:
    edit(path, bytes=None)
    assert read(path, verify=False)[0].keys() == ARRAYS.keys()
    assert read(path)[0].keys() == ARRAYS.keys()
    (path.parent / "weights.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"weights.npy is damaged \("):
        read(path, verify=False)
