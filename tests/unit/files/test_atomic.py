"""A folder that a killed process was writing goes with the next that writes it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgrec_torchrec.files import atomic
from sgrec_torchrec.files.atomic import atomic_folder, working_folder

WRITER = """
import sys, time
from pathlib import Path
from sgrec_torchrec.files.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("of it")
    print(flush=True)
    time.sleep(600)
"""


def begin(path: Path) -> "subprocess.Popen[bytes]":
    """A process that is in the middle of writing the folder."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"\n"
    return writer


def age(folder: Path) -> None:
    """Make all in it as old as it need be."""
    then = time.time() - 2 * atomic.FRESH_S
    for path in folder.glob(".*.tmp"):
        os.utime(path, (then, then))


def test_what_a_killed_writer_left_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    others = [
        tmp_path / name for name in (".graph.1.tmp", ".split.12345678.tmp", "mine")
    ]
    for other in others:
        other.mkdir()
    writer = begin(path)
    (left,) = tmp_path.glob(".graph.????????.tmp")
    age(tmp_path)
    with atomic_folder(path) as folder:
        # Its writer lives.
        assert left.exists()
        (folder / "whole").touch()
    assert left.exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    with working_folder(path):
        assert not left.exists()
    assert [child.name for child in path.iterdir()] == ["whole"]
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_what_was_made_just_now_stays(tmp_path: Path) -> None:
    writer = begin(tmp_path / "graph")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (left,) = tmp_path.glob(".*.tmp")
    with working_folder(tmp_path / "graph"):
        assert left.exists()


@pytest.mark.parametrize("error", [OSError, BlockingIOError])
def test_no_lock_means_that_nothing_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    def refuse(_handle: int, _kind: int) -> None:
        raise error

    left = tmp_path / ".graph.12345678.tmp"
    left.mkdir()
    age(tmp_path)
    monkeypatch.setattr("fcntl.flock", refuse)
    with atomic_folder(tmp_path / "graph") as folder:
        (folder / "whole").touch()
    assert left.exists()
    assert (tmp_path / "graph" / "whole").exists()
