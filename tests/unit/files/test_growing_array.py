"""Arrays appended to are files as ``np.save`` writes them; mapped ones are let go."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.files.array_folder import read_arrays, write_arrays
from sgrec_torchrec.files.growing_array import (
    GrowingArray,
    file_of,
    forget,
    mapped,
)


@pytest.mark.parametrize("kind", ["int64", "int32", "float64", "float32"])
@pytest.mark.parametrize("cuts", [(), (0,), (3,), (1, 1, 6), (0, 12, 12)])
def test_file_is_that_of_numpy(tmp_path: Path, kind: str, cuts: tuple[int]) -> None:
    whole = np.random.default_rng(1).integers(0, 99, 12).astype(kind)
    if not cuts:
        whole = whole[:0]
    np.save(tmp_path / "whole.npy", whole)
    with closing(GrowingArray(tmp_path / "grown.npy", kind)) as grown:
        for part in np.split(whole.astype(np.float64), cuts):
            grown.append(part)
    assert grown.length == len(whole)
    expected = (tmp_path / "whole.npy").read_bytes()
    assert (tmp_path / "grown.npy").read_bytes() == expected


def test_parts_are_written_in_their_order_whatever_their_strides(
    tmp_path: Path,
) -> None:
    with closing(GrowingArray(tmp_path / "grown.npy", np.int32)) as grown:
        grown.append(np.arange(10)[::-2])
    assert np.load(tmp_path / "grown.npy").tolist() == [9, 7, 5, 3, 1]


def test_what_is_let_go_is_read_again(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.arange(100_000))
    array = mapped(tmp_path / "array.npy")
    assert array.sum() == 4_999_950_000
    part = array[5:9]
    in_memory = np.arange(3)
    forget(array, part, in_memory)
    assert array.sum() == 4_999_950_000
    assert part.tolist() == [5, 6, 7, 8]
    assert in_memory.tolist() == [0, 1, 2]


def resident_bytes(path: Path) -> int:
    """Of a mapped file, in this process."""
    held, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            held += int(line.split()[1]) * 1024
    return held


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="of Linux alone")
def test_pages_that_are_let_go_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(1 << 18))
    array = mapped(path)
    assert array.sum() > 0
    assert resident_bytes(path) > 1 << 20
    forget(array[3:])
    assert resident_bytes(path) == 0


def test_only_whole_mapped_files_have_a_file(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(9))
    array = mapped(path)
    assert file_of(array) == path
    assert file_of(array[1:]) is None
    assert file_of(array[:-1]) is None
    assert file_of(np.arange(9)) is None
    assert file_of(np.load(path, mmap_mode="r+")) is None
    path.unlink()
    assert file_of(array) is None


@pytest.mark.parametrize("links", [True, False])
def test_mapped_arrays_are_kept_without_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = tmp_path / "array.npy"
    np.save(path, np.arange(9))
    array = mapped(path)

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    manifest = tmp_path / "folder" / "facts.json"
    arrays = {"whole": array, "part": array[2:]}
    write_arrays(manifest, arrays, {"format_version": 1})
    path.unlink()
    found, _ = read_arrays(
        manifest, ("whole", "part"), {}, format_version=1, what="the arrays"
    )
    assert found["whole"].tolist() == list(range(9))
    assert found["part"].tolist() == list(range(2, 9))
