"""A fork of ``warm_python`` is to its caller what a process of its own would be."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def run(python: Path, *words: object, **options) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(python), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no such folder')", 1, "no such folder"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
    ],
)
def test_it_ends_as_the_program_ends(
    warm_python: Path, code: str, exit_code: int, said: str
) -> None:
    done = run(warm_python, "-c", code)
    assert done.returncode == exit_code
    assert said in done.stderr


def test_words_folder_environment_and_input_are_the_callers(
    warm_python: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, beside\n"
        "print(sys.argv, __name__, os.getcwd(), dict(os.environ), sys.stdin.read())\n"
    )
    (tmp_path / "beside.py").write_text("")
    arguments = [script, "a b", "--c"]
    options = {"cwd": tmp_path, "env": {"ONLY": "this"}, "input": "typed"}
    warm, cold = (run(p, *arguments, **options) for p in (warm_python, sys.executable))
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout.split("{")[0] == cold.stdout.split("{")[0]
    assert "'ONLY': 'this'" in warm.stdout
    assert "HOME" not in warm.stdout
    assert warm.stdout.endswith("typed\n")


def test_a_module_is_run_as_main(warm_python: Path) -> None:
    done = run(warm_python, "-m", "json.tool", "--help")
    assert done.returncode == 0
    assert "usage: " in done.stdout


def test_libraries_are_loaded_and_nothing_of_ours(warm_python: Path) -> None:
    code = "import sys; print({n.partition('.')[0] for n in sys.modules})"
    loaded = run(warm_python, "-c", code).stdout
    assert "'torchrec'" in loaded
    assert "'sgrec_torchrec'" not in loaded


def test_open_files_go_along(warm_python: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        code = f"import os; os.write({file.fileno()}, b'written')"
        assert run(warm_python, "-c", code, pass_fds=[file.fileno()]).returncode == 0
    assert (tmp_path / "file").read_text() == "written"


SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_fork_too(warm_python: Path, number: signal.Signals) -> None:
    words = [str(warm_python), "-c", SLEEP]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        fork = os.pidfd_open(int(asking.stdout.readline()))
        asking.send_signal(number)
        assert asking.wait(60) == -number
        # Readable once the process has ended.
        assert select.select([fork], [], [], 60)[0]
        os.close(fork)


def test_ranks_beside_each_other_hash_with_different_seeds(warm_python: Path) -> None:
    seen = [
        run(warm_python, "-c", "print(hash('x'))", env=os.environ | {"RANK": str(rank)})
        for rank in range(4)
    ]
    first, second, *others = [int(one.stdout) for one in seen]
    assert first != second
    assert others == [first, second]
