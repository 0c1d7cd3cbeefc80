"""A file that its folder's manifest lists is hashed before it is believed."""

from pathlib import Path

import pytest

from sgrec_torchrec.files.listed_sums import SUMS, check_listed, sums_of
from sgrec_torchrec.files.sealed_json import write_sealed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files a and b, of which the manifest lists a."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    write_sealed(tmp_path / "manifest.json", {SUMS: sums_of([tmp_path / "a"])})
    return tmp_path


def test_what_is_listed_must_be_as_it_was(folder: Path) -> None:
    both = [folder / "a", folder / "b"]
    check_listed(both, "mend it")
    (folder / "b").write_text("other")
    check_listed(both, "mend it")
    (folder / "a").write_text("other")
    with pytest.raises(ValueError, match=r"/a differs from its sha256 in .*: mend it"):
        check_listed(both, "mend it")


def test_what_is_gone_is_found_by_others(folder: Path) -> None:
    (folder / "a").unlink()
    check_listed([folder / "a"], "mend it")


def test_a_flipped_bit_of_the_list_is_named(folder: Path) -> None:
    path = folder / "manifest.json"
    data = path.read_bytes()
    at = data.index(b'"a"') + 4
    digit = data.index(b'"', at) + 1
    path.write_bytes(data[:digit] + bytes([data[digit] ^ 1]) + data[digit + 1 :])
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*: mend it"):
        check_listed([folder / "b"], "mend it")
