"""Runs a module as a program, and kills it at its n-th change of a folder.

    python kill_at.py FOLDER N sgrec_torchrec.cli report runs/movielens

A change is a file that is opened to be written, or anything made, renamed or removed
below the folder; the process ends before the change is done. What the process says last
is how many there were, where it got to its end. Its children run PYTHON_OF_CHILDREN.
"""

import atexit
import os
import runpy
import signal
import sys
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate"),
}


def kill_at(folder: str, number: int) -> None:
    """Watch this process from here on."""
    seen = 0

    def note(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            is_change = isinstance(args[2], int) and bool(args[2] & WRITES)
        else:
            is_change = event in CHANGES
        if not is_change or not _is_below(args):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_below(args: tuple[object, ...]) -> bool:
        path = args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        # Relative to an open folder: of a tree that is being removed.
        return text.startswith(folder) or not Path(text).is_absolute()

    sys.addaudithook(note)
    atexit.register(lambda: print(f"{seen} changes", file=sys.stderr))


if __name__ == "__main__":
    where, count, module, *words = sys.argv[1:]
    kill_at(where, int(count))
    sys.argv = [module, *words]
    sys.executable = os.environ.get("PYTHON_OF_CHILDREN", sys.executable)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
