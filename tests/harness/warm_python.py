"""A Python that has the heavy libraries loaded, for tests that start many processes.

Importing torch and torchrec takes seconds of a core, in every process anew. Here one
process imports them once, and forks for whoever asks:

    python warm_python.py serve ADDRESS PID    until the process PID has ended
    python warm_python.py start ADDRESS script.py a b    as  python script.py a b

``start`` hands its words, folder, environment and open files over, passes signals on,
and ends as the fork ends. Only libraries of others are loaded beforehand: what is
tested is imported by each process for itself.
"""

import atexit
import fcntl
import gc
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torchrec.distributed.model_parallel",
    "tabulate",
    "torch.utils.tensorboard",
    "matplotlib.figure",
    "scipy.sparse",
    "faiss",
    "duckdb",
    "numba",
    "rich.table",
    "typer",
    "transformers.models.auto.modeling_auto",
)
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_FILES = 64
FREE_FILE = 200
"""Descriptors from here on are nobody's."""


def serve(address: str, watched: int) -> None:
    """Fork for each that connects to the address."""
    for name in LIBRARIES:
        # An extra that is not installed is not needed either.
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("a library started a thread, which no fork would have")
    gc.collect()
    gc.freeze()
    end = os.pidfd_open(watched)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(MAX_FILES)
    Path(f"{address}.new").rename(address)
    while end not in select.select([listener, end], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(end)
            attend(connection)
            os._exit(0)
        connection.close()


def attend(connection: socket.socket) -> None:
    """Fork once more; tell who asked how that process ended."""
    _, files, _, _ = socket.recv_fds(connection, 1, MAX_FILES)
    request = json.loads(connection.makefile("rb").readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        connection.close()
        finish(lambda: become(request, files))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    connection.sendall(f"{child}\n".encode())
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        # Who asked was killed.
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if ended in ready:
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def finish(program: Callable[[], None]) -> NoReturn:
    """Run it and end as an interpreter ends, but for freeing what it shares."""
    code = 1
    try:
        program()
        code = 0
    except SystemExit as stopped:
        if stopped.code is None or isinstance(stopped.code, int):
            code = stopped.code or 0
        else:
            print(stopped.code, file=sys.stderr)
    finally:
        if sys.exception() is not None:
            traceback.print_exc()
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def become(request: dict[str, Any], files: Sequence[int]) -> None:
    """Run the program that the words name, as the interpreter would."""
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FREE_FILE) for file in files]
    for file, number in zip(moved, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through="PYTHONUNBUFFERED" in os.environ)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    first, *others = request["words"]
    if first == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0], sys.argv = "", ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(first).resolve().parent), request["words"]
        runpy.run_path(first, run_name="__main__")


def start(address: str, words: Sequence[str]) -> int:
    """Ask for a process, and be to the caller what that process is; its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    mine = connection.fileno()
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    files = [file for file in listed if file != mine and is_open(file)]
    request = {
        "words": words,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "files": files,
    }
    child = 0
    waiting: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if child:
            os.kill(child, number)
        else:
            waiting.append(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    socket.send_fds(connection, [b"."], files)
    connection.sendall(json.dumps(request).encode() + b"\n")
    answers = connection.makefile("rb")
    child = int(answers.readline())
    for number in waiting:
        os.kill(child, number)
    code = int(answers.readline())
    if code < 0:
        # It died of a signal: so does this.
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def is_open(file: int) -> bool:
    """The descriptor that listed the folder is closed by now."""
    try:
        fcntl.fcntl(file, fcntl.F_GETFD)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    action, where, *rest = sys.argv[1:]
    if action == "serve":
        serve(where, int(rest[0]))
    else:
        sys.exit(start(where, rest))
