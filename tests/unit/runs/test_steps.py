"""A row of real processes: done once, gone on with, begun anew."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from folder_state import folder_state

from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.runs import steps
from sgrec_torchrec.runs.steps import (
    Outcome,
    Step,
    _Row,
    read_stamp,
    run_steps,
    show,
    stamp_path,
)

COPY = (
    "import sys; from pathlib import Path; "
    "text = Path(sys.argv[1]).read_text(); "
    "Path(sys.argv[2]).parent.mkdir(parents=True, exist_ok=True); "
    "Path(sys.argv[2]).write_text(text + sys.argv[3]); print('copied', text)"
)


def copy(run_dir: Path, name: str, source: str, target: str, more: str = "") -> Step:
    """A step that writes the source's text, and more, to the target."""
    words = (str(run_dir / source), str(run_dir / target), more)
    return Step(
        name=name, command=("-c", COPY, *words), inputs=(source,), outputs=(target,)
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "log").write_text("log")
    return tmp_path


@pytest.fixture
def row(run_dir: Path) -> list[Step]:
    """log -> a -> b, and log -> c."""
    return [
        copy(run_dir, "first", "log", "a", "1"),
        copy(run_dir, "second", "a", "folder/b", "2"),
        copy(run_dir, "third", "log", "c"),
    ]


def done(outcomes: list[Outcome]) -> list[str]:
    """Names of the steps that were not reused."""
    return [one.name for one in outcomes if not one.is_reused]


def test_steps_run_in_order_and_what_they_say_is_shown_and_kept(
    run_dir: Path, row: list[Step], capsys
) -> None:
    assert done(run_steps(run_dir, row)) == ["first", "second", "third"]
    assert (run_dir / "folder" / "b").read_text() == "log12"
    text = capsys.readouterr().out
    places = [
        text.index(part) for part in ("[1/3] first", "copied log1", "[3/3] third")
    ]
    assert places == sorted(places)
    assert (run_dir / "logs" / "02-second.log").read_text() == "copied log1\n"
    names = without_seal(json.loads((run_dir / "steps" / "row.json").read_text()))[
        "names"
    ]
    assert names == ["first", "second", "third"]
    assert run_dir.joinpath("steps", "first.json").is_file()


def test_a_second_call_reuses_all_and_keeps_their_seconds(
    run_dir: Path, row: list[Step], capsys
) -> None:
    run_steps(run_dir, row)
    stamp = read_stamp(stamp_path(run_dir, "first"))
    assert stamp is not None
    again = run_steps(run_dir, row)
    assert done(again) == []
    assert again[0].seconds == stamp.seconds
    show(again, "Row")
    assert "reused" in capsys.readouterr().out


def test_a_changed_input_does_its_readers_again_and_no_others(
    run_dir: Path, row: list[Step]
) -> None:
    row[2] = copy(run_dir, "third", "other", "c")
    (run_dir / "other").write_text("other")
    run_steps(run_dir, row)
    (run_dir / "log").write_text("new")
    assert done(run_steps(run_dir, row)) == ["first", "second"]
    assert (run_dir / "folder" / "b").read_text() == "new12"


def test_an_equal_output_leaves_later_steps_as_they_are(
    run_dir: Path, row: list[Step]
) -> None:
    run_steps(run_dir, row)
    row[0] = replace(row[0], settings={"seed": 1})
    assert done(run_steps(run_dir, row)) == ["first"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("other")])
def test_a_lost_or_changed_output_is_made_again(
    run_dir: Path, row: list[Step], harm: Callable[[Path], object]
) -> None:
    run_steps(run_dir, row)
    harm(run_dir / "folder" / "b")
    assert done(run_steps(run_dir, row)) == ["second"]
    assert (run_dir / "folder" / "b").read_text() == "log12"


def test_what_others_may_add_to_must_only_be_there(
    run_dir: Path, row: list[Step]
) -> None:
    row[1] = replace(row[1], outputs=(), grown=("folder/b",))
    run_steps(run_dir, row)
    (run_dir / "folder" / "b").write_text("more")
    assert done(run_steps(run_dir, row)) == []
    (run_dir / "folder" / "b").unlink()
    assert done(run_steps(run_dir, row)) == ["second"]


def test_folders_go_where_settings_or_inputs_change_and_stay_else(
    run_dir: Path, row: list[Step]
) -> None:
    row[1] = replace(row[1], folders=("folder",))
    run_steps(run_dir, row)
    (run_dir / "folder" / "part").write_text("half done")
    again = copy(run_dir, "second", "a", "folder/b", "3")
    row[1] = replace(row[1], command=again.command)
    assert done(run_steps(run_dir, row)) == ["second"]
    assert (run_dir / "folder" / "part").is_file()
    row[1] = replace(row[1], settings={"seed": 1})
    assert done(run_steps(run_dir, row)) == ["second"]
    assert not (run_dir / "folder" / "part").exists()


def test_a_failure_names_step_log_and_last_words_and_the_next_call_goes_on(
    run_dir: Path, row: list[Step]
) -> None:
    flag = run_dir / "mended"
    code = f"import sys, pathlib; sys.exit(0 if pathlib.Path({str(flag)!r}).exists() "
    code += "else 'disk\\nis full')"
    row[2] = Step(name="third", command=("-c", code))
    with pytest.raises(ChildProcessError) as failed:
        run_steps(run_dir, row)
    words = str(failed.value)
    assert "step 3 (third) ended with code 1: is full" in words
    assert str(run_dir / "logs" / "03-third.log") in words
    assert "give the same command again" in words
    flag.touch()
    assert done(run_steps(run_dir, row)) == ["third"]


@pytest.fixture
def changed(run_dir: Path, row: list[Step]) -> Step:
    """The second step, done once; then other settings, and a command that fails."""
    row[1] = replace(row[1], folders=("folder",))
    run_steps(run_dir, row)
    return replace(row[1], command=("-c", "import sys; sys.exit(3)"), settings={"a": 1})


def test_what_was_made_is_put_back_where_the_new_fails(
    run_dir: Path, row: list[Step], changed: Step
) -> None:
    before = folder_state(run_dir / "folder")
    with pytest.raises(ChildProcessError, match="ended with code 3"):
        run_steps(run_dir, [row[0], changed])
    assert folder_state(run_dir / "folder") == before
    assert not (run_dir / "steps" / "second.kept").exists()
    assert done(run_steps(run_dir, row)) == []


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """killed(run_dir, steps, method=None): the row, killed in its first process.

    Or at the end of a method of ``Kept``.
    """

    class KilledError(BaseException):
        pass

    def kill(*_: object, **__: object) -> NoReturn:
        raise KilledError

    def call(run_dir: Path, row: list[Step], at: tuple[object, str]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(*at, kill)
            with pytest.raises(KilledError):
                run_steps(run_dir, row)

    return call


KILLS = {
    "begun": (steps, "_streamed"),
    "put away": (_Row, "_run"),
    "moving": (Path, "rename"),
    "copying": (shutil, "copy"),
}


@pytest.mark.parametrize("at", KILLS)
def test_after_a_kill_the_settings_say_whether_to_go_on_or_back(
    run_dir: Path, row: list[Step], changed: Step, killed, at: str
) -> None:
    before = folder_state(run_dir / "folder")
    kept = run_dir / "steps" / "second.kept"
    killed(run_dir, [row[0], changed], KILLS[at])
    assert kept.exists()
    # The settings of before: all is put back, nothing is done again.
    assert done(run_steps(run_dir, row)) == []
    assert folder_state(run_dir / "folder") == before
    assert not kept.exists()
    # The same settings: it goes on, and what was made before goes at the end.
    killed(run_dir, [row[0], changed], KILLS[at])
    again = replace(changed, command=(*row[1].command[:-1], "3"))
    assert done(run_steps(run_dir, [row[0], again])) == ["second"]
    assert (run_dir / "folder" / "b").read_text() == "log13"
    assert not kept.exists()
    assert done(run_steps(run_dir, [row[0], again])) == []


@pytest.mark.parametrize("at", [(Path, "rename"), (shutil, "rmtree")])
def test_a_kill_while_all_is_put_back_or_dropped_is_made_good(
    run_dir: Path, row: list[Step], changed: Step, killed, at: tuple[object, str]
) -> None:
    before = folder_state(run_dir / "folder")
    killed(run_dir, [row[0], changed], KILLS["begun"])
    (run_dir / "folder").mkdir()
    (run_dir / "folder" / "half").touch()
    killed(run_dir, row, at)
    assert done(run_steps(run_dir, row)) == []
    assert folder_state(run_dir / "folder") == before
    killed(run_dir, [row[0], changed], KILLS["begun"])
    again = replace(changed, command=(*row[1].command[:-1], "3"))
    killed(run_dir, [row[0], again], (shutil, "rmtree"))
    assert done(run_steps(run_dir, [row[0], again])) == []
    assert not (run_dir / "steps" / "second.kept").exists()


def test_a_step_that_does_not_write_its_output_is_not_done(run_dir: Path) -> None:
    step = Step(name="idle", command=("-c", "pass"), outputs=("nothing",))
    for _ in range(2):
        with pytest.raises(ChildProcessError, match="ended well, but "):
            run_steps(run_dir, [step])


def test_an_input_that_nobody_wrote_is_named(run_dir: Path, row: list[Step]) -> None:
    with pytest.raises(FileNotFoundError, match=r"step second: .*a is missing"):
        run_steps(run_dir, row[1:])


@pytest.mark.parametrize("text", ["", "{}", '{"command": 1}', "[1]"])
def test_a_damaged_stamp_does_the_step_again(
    run_dir: Path, row: list[Step], text: str
) -> None:
    run_steps(run_dir, row)
    stamp_path(run_dir, "second").write_text(text)
    assert done(run_steps(run_dir, row)) == ["second"]


def test_a_flipped_bit_of_a_stamp_does_the_step_again(
    run_dir: Path, row: list[Step]
) -> None:
    """Wherever it is, what the stamp says is not believed."""
    run_steps(run_dir, row)
    path = stamp_path(run_dir, "second")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_stamp(path) is None
    path.write_bytes(whole.replace(b'"is_done": true', b'"is_done":  true'))
    assert done(run_steps(run_dir, row)) == []
    path.write_bytes(whole.replace(b'"seconds": ', b'"seconds": 1'))
    assert done(run_steps(run_dir, row)) == ["second"]


def test_a_stamp_of_an_older_version_has_no_seal(
    run_dir: Path, row: list[Step]
) -> None:
    run_steps(run_dir, row)
    for step in row:
        path = stamp_path(run_dir, step.name)
        stamp = json.loads(path.read_text())
        del stamp["checksum"]
        path.write_text(json.dumps(stamp))
    assert done(run_steps(run_dir, row)) == []


SLEEP = """
import sys, time
from pathlib import Path
from sgrec_torchrec.runs.steps import Step, run_steps
here = Path(sys.argv[1])
code = "import os, sys, time; from pathlib import Path; "
code += "Path(sys.argv[1], 'pid').write_text(str(os.getpid())); "
code += "print('asleep', flush=True); time.sleep(60)"
run_steps(here, [Step(name="sleep", command=("-c", code, str(here)))])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_running_process_and_leaves_the_step_begun(
    run_dir: Path, number: signal.Signals
) -> None:
    words = [sys.executable, "-c", SLEEP, str(run_dir)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert b"begins" in parent.stdout.readline()
        assert parent.stdout.readline() == b"asleep\n"
        # A second call on the same folder is refused while the first is at work.
        with pytest.raises(BlockingIOError, match="another process is at work"):
            run_steps(run_dir, [])
        parent.send_signal(number)
        assert parent.wait(30) == 128 + number
        assert parent.stderr.read() == b""
    child = int((run_dir / "pid").read_text())
    assert not _is_alive(child)
    stamp = read_stamp(stamp_path(run_dir, "sleep"))
    assert stamp is not None
    assert not stamp.is_done
    assert stamp.seconds > 0


def _is_alive(pid: int) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}/stat").exists():
            return False
        time.sleep(0.05)
    return True
