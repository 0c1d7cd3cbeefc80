"""Parts of a launch command: the script, a free port, where torchrun is.

Kept apart from ``dist.py`` because torchx takes every function there for a component.
"""

import shlex
import shutil
import socket
import sys
from pathlib import Path

from torchx.specs import AppDef

MEM_MB_PER_PROCESS = 4096


def take_script(
    words: tuple[str, ...], script: str | None, module: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """The script and its own arguments, where the script may be the first word.

    Raises:
        ValueError: if neither script nor module is named by an option, and the first
            word is not a Python file.
    """
    if script is not None or module is not None:
        return script, words
    if not words or not words[0].endswith(".py"):
        found = repr(words[0]) if words else "nothing"
        raise ValueError(
            f"dist.ddp: expected a script ending in .py, found {found}; "
            "example: torchx run dist.ddp -j 2x8 sgrec_torchrec/train.py"
        )
    return words[0], words[1:]


def node_size(
    device: str, num_processes: int, cpu: int, gpu: int, mem_mb: int
) -> dict[str, int]:
    """What one node is asked for; zeros are filled in by ``num_processes``.

    torchrec takes 0.3 GiB a process before tables and data (measured), so torchx's own
    default of 1 GiB a *node* gets a job killed where a cluster enforces it.

    Raises:
        ValueError: if ``device`` is neither cpu nor cuda.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"dist.ddp: device = {device!r}: choose cpu or cuda")
    return {
        "cpu": cpu or max(2, num_processes),
        "gpu": gpu or (num_processes if device == "cuda" else 0),
        "memMB": mem_mb or MEM_MB_PER_PROCESS * num_processes,
    }


def free_port() -> int:
    """A TCP port that is free on this machine now; nobody holds it until it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


def end_torchrun_options(app: AppDef, program: str) -> None:
    """Put ``--`` before the script or module, so that its options stay its own.

    Else torchrun takes ``--run`` for a short form of its ``--run-path`` and ends.
    """
    for role in app.roles:
        options, found, words = role.args[-1].partition(f" {shlex.quote(program)} ")
        assert found, f"{program} is not in {role.args[-1]}"
        role.args[-1] = f"{options} --{found}{words}"


def with_torchrun_on_path(app: AppDef) -> AppDef:
    """Put this interpreter's folder first on PATH, unless torchrun is found there.

    So ``.venv/bin/torchx run ...`` works without activating ``.venv``, and never picks
    another environment's torchrun. In a container an absent folder does no harm.
    ``$$`` is torchx's way to write ``$``.
    """
    folder = Path(sys.executable).parent
    found = shutil.which("torchrun")
    if found is None or Path(found).parent != folder:
        for role in app.roles:
            prefix = f'PATH={shlex.quote(str(folder))}:"$$PATH"'
            role.args[-1] = f"{prefix} {role.args[-1]}"
    return app
