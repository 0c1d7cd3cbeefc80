"""Whoever finds the disk full says it in its own way; a user reads one."""

import errno
from pathlib import Path

import pytest

from sgrec_torchrec.files.atomic import atomic_file, atomic_folder
from sgrec_torchrec.files.full_disk import NoSpaceError, failed_write
from sgrec_torchrec.files.tracking import Tracker

FULL = "MiB are free in .*: make room there"
TOLD = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError("3685200 requested and 1786848 written"),
    RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"),
    RuntimeError("IO Error: Could not write file x: No space left on device"),
]


@pytest.mark.parametrize("told", TOLD, ids=str)
@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_named_and_nothing_is_left(
    tmp_path: Path, writer, told: Exception
) -> None:
    path = tmp_path / "whole"
    message = f"no space left to write {path} .*{FULL}"
    with pytest.raises(NoSpaceError, match=message), writer(path):
        raise told
    assert list(tmp_path.iterdir()) == []


def test_what_came_of_a_full_disk_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match=FULL), atomic_folder(tmp_path / "log"):
        raise ValueError("log.csv cannot be read") from TOLD[-1]


def test_other_errors_stay_and_a_named_one_is_not_named_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^row 7$"), atomic_file(tmp_path / "a"):
        raise ValueError("row 7")
    with pytest.raises(NoSpaceError, match=r"^the table$"), atomic_file(tmp_path / "a"):
        raise NoSpaceError("the table")
    assert type(failed_write(tmp_path, ValueError("x"), "no")) is OSError


def test_a_metric_that_finds_no_room_names_its_file(
    tmp_path: Path, monkeypatch
) -> None:
    class Full:
        def write(self, _: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            return

    with Tracker(tmp_path, enabled=True) as tracker:
        monkeypatch.setattr(tracker, "_file", Full())
        with pytest.raises(NoSpaceError, match=r"metrics\.jsonl"):
            tracker.log(0, {"loss": 1.0}, "pretrain")
