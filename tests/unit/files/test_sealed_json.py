"""What a sealed file says is what was written, or the file is refused by name."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.files.sealed_json import (
    Fields,
    read_sealed,
    without_seal,
    write_sealed,
)

CONTENT = {
    "format_version": 2,
    "sha256": {"a.npy": "0" * 64},
    "decay": 0.7,
    "counts": {10: 1, 9: (2, None)},
    "name": "Gr\u00f6\u00dfe",
}
FIELDS: Fields = {"sha256": dict, "decay": (float, int)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "stage.json"
    write_sealed(path, CONTENT)
    return path


def read(path: Path, version: int = 2) -> dict[str, Any]:
    return read_sealed(path, FIELDS, format_version=version, mend="build it again")


def test_content_comes_back_as_json_has_it(path: Path) -> None:
    assert read(path) == {**CONTENT, "counts": {"10": 1, "9": [2, None]}}


def test_a_seal_replaces_the_one_before(path: Path) -> None:
    write_sealed(path, json.loads(path.read_text()) | {"decay": 1})
    assert read(path)["decay"] == 1


def test_no_bit_flips_unseen(path: Path) -> None:
    whole, content = path.read_bytes(), read(path)
    chance, refused = random.Random(0), []
    for _ in range(300):
        place = chance.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert read(path) == content, f"bit {place}"
        except ValueError as error:
            refused.append(str(error))
    one_line = re.compile(rf"{path}(:| is damaged)[^\n]*: build it again")
    assert [said for said in refused if not one_line.fullmatch(said)] == []
    # The others change the space between two words, which says nothing.
    assert len(refused) > 200


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"checksum": None}, "is damaged (its checksum is gone)"),
        ({"checksum": "0"}, "is damaged (its checksum does not fit)"),
        ({"checksum": 7}, "is damaged (its checksum does not fit)"),
        ({"decay": 0.8}, "is damaged (its checksum does not fit)"),
        ({"more": 1}, "is damaged (its checksum does not fit)"),
        (
            {"format_version": 1},
            "fit; format_version 1, this program reads 2)",
        ),
        ({"format_version": None}, "is damaged (its checksum does not fit)"),
    ],
)
def test_what_was_changed_is_refused(path: Path, changes: Any, why: str) -> None:
    content = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=re.escape(f"{why}: build")) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith(": build it again")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"1", b"null", b'"a"', b"\xff", b"[" * 100_000]
)
def test_what_is_no_object_is_refused(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"stage.json is damaged \(.*\): build it aga"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sha256": None}, "it has no sha256"),
        ({"sha256": []}, "sha256 is []"),
        ({"decay": "0.7"}, "decay is '0.7'"),
    ],
)
def test_fields_of_other_types_are_refused(path: Path, changes: Any, why: str) -> None:
    content = {**CONTENT, **changes}
    write_sealed(path, {name: one for name, one in content.items() if one is not None})
    with pytest.raises(ValueError, match=re.escape(f"is damaged ({why}): build it")):
        read(path)


def test_the_version_before_the_seal_is_read_without_one(path: Path) -> None:
    path.write_text(json.dumps({**CONTENT, "format_version": 1}))
    assert read(path)["decay"] == 0.7
    path.write_text(json.dumps({"sha256": {}, "decay": 1}))
    assert read(path, version=1)["decay"] == 1
    with pytest.raises(ValueError, match="it has no 'format_version'"):
        read(path)


@pytest.mark.parametrize("version", [0, 1, 3, 9])
def test_another_version_is_told_from_damage(path: Path, version: int) -> None:
    write_sealed(path, {**CONTENT, "format_version": version})
    with pytest.raises(
        ValueError,
        match=rf"n: format_version {version}, this program reads 2: build it again",
    ):
        read(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.json is missing: build it agai"):
        read(tmp_path / "none.json")


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_sealed(tmp_path / "a.json", {"x": float("nan")})


def test_what_is_only_shown_needs_no_seal_but_a_fitting_one(path: Path) -> None:
    assert without_seal([1]) == [1]
    assert without_seal({"a": 1}) == {"a": 1}
    sealed = json.loads(path.read_text())
    assert without_seal(sealed) == read(path)
    with pytest.raises(ValueError, match="checksum does not fit"):
        without_seal(sealed | {"decay": 0.8})
