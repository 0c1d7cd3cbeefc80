"""Starts ``warm_python``, and writes the program that asks it for processes."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).with_name("warm_python.py")
LIMIT_S = 180.0


def serve_in(folder: Path, watched: int) -> None:
    """Start two, which end when the process ``watched`` has ended.

    Ranks of odd number are forks of the one, all else of the other: their hashes have
    different seeds, so what depends on the order of a set differs between ranks.
    """
    begun = {name: _begin(folder / name, watched) for name in ("even", "odd")}
    for name, process in begun.items():
        _wait(folder / name, process)
    python = shlex.join([sys.executable, "-I", "-S", str(PROGRAM), "start"])
    addresses = [shlex.quote(str(folder / name)) for name in begun]
    command = warm_command(folder)
    command.write_text(
        "#!/bin/sh\n"
        f"server={addresses[0]}\n"
        f'case "${{RANK:-0}}" in *[13579]) server={addresses[1]} ;; esac\n'
        f'exec {python} "$server" "$@"\n'
    )
    command.chmod(0o755)


def warm_command(folder: Path) -> Path:
    """The program that ``serve_in`` wrote."""
    return folder / "python"


def _begin(address: Path, watched: int) -> "subprocess.Popen[bytes]":
    with address.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), "serve", str(address), str(watched)],
            # A pool of threads would be lost at the first fork.
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait(address: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + LIMIT_S
    while not address.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            said = address.with_suffix(".log").read_text()
            raise RuntimeError(f"warm_python did not start:\n{said}")
        time.sleep(0.05)
