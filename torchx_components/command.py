"""Parts of a launch command: the script, a free port, where torchrun is.

Kept apart from ``dist.py`` and ``jobs.py`` because torchx takes every function there
for a component.
"""

import re
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torchx.specs as specs
from torchx.components.dist import parse_nnodes
from torchx.specs import AppDef
from torchx.specs.finder import ComponentValidationException

MEM_MB_PER_PROCESS = 4096
MAX_RETRIES = 10
"""AWS Batch starts a job ten times at most."""
MAX_PORT = 65_535
CLI = "sgrec_torchrec.cli"


class LaunchError(ComponentValidationException, ValueError):
    """What a user can change; torchx prints these in a line, others as a traceback."""


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
        raise LaunchError(
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
        raise LaunchError(f"device = {device!r}: choose cpu or cuda")
    return {
        "cpu": cpu or max(2, num_processes),
        "gpu": gpu or (num_processes if device == "cuda" else 0),
        "memMB": mem_mb or MEM_MB_PER_PROCESS * num_processes,
    }


def processes_a_node(j: str) -> int:
    """Of a sound ``-j``.

    Raises:
        ValueError: for another form, or a number below 1, which torchx asserts away
            without a word.
    """
    form = "give NODESxPROCESSES, as 2x8, or MIN:NODESxPROCESSES, each 1 or more"
    if not re.fullmatch(r"((\d+:)?\d+x)?\d+", j):
        raise LaunchError(f"-j {j}: {form}")
    min_nodes, nodes, processes, _ = parse_nnodes(j)
    if not 1 <= min_nodes <= nodes or processes < 1:
        raise LaunchError(f"-j {j}: {form}")
    return processes


def check_port(port: int) -> int:
    """The same number.

    Raises:
        ValueError: for what is no port.
    """
    if not 0 <= port <= MAX_PORT:
        raise LaunchError(
            f"rdzv_port = {port}: give 1 to {MAX_PORT}, or 0 for a free one"
        )
    return port


def end_where_port_is_taken(app: AppDef, port: int) -> AppDef:
    """Let nodes look first whether something else listens at a given ``port``.

    Else they take whatever listens there for their meeting point, and wait for it in
    vain. Here and not at submission: the port is that of the job's first machine, where
    the first node looks, and all others that are on it. The shell asks, which takes
    milliseconds; torchrun loads for seconds before the first node takes the port.
    """
    # One node alone meets at a port that torchrun chooses; 0 is free.
    if not port or app.roles[0].num_replicas == 1:
        return app
    told = f"rdzv_port = {port} is in use on this machine: give another one, or 0"
    host = f'"$${{{specs.macros.rank0_env}:-localhost}}"'
    check = (
        f'if {{ [ "{specs.macros.replica_id}" = 0 ] || [ {host} = localhost ]; }} && '
        f"(exec 3<>/dev/tcp/localhost/{port}) 2>/dev/null; then "
        f"echo {shlex.quote(told)} >&2; exit 1; fi; "
    )
    for role in app.roles:
        role.args[-1] = check + role.args[-1]
    return app


def free_port() -> int:
    """A TCP port that is free on this machine now; nobody holds it until it is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port


def end_torchrun_options(app: AppDef, program: str, args: Sequence[str]) -> None:
    """Put ``--`` before the script or module, so that its options stay its own.

    Else torchrun takes ``--run`` for a short form of its ``--run-path`` and ends.
    """
    if not args:
        return
    for role in app.roles:
        options, found, words = role.args[-1].partition(f" {shlex.quote(program)} ")
        assert found, f"{program} is not in {role.args[-1]}"
        role.args[-1] = f"{options} --{found}{words}"


def with_program_on_path(app: AppDef, program: str = "torchrun") -> AppDef:
    """Put this interpreter's folder first on PATH, unless ``program`` is found there.

    So ``.venv/bin/torchx run ...`` works without activating ``.venv``, and never picks
    another environment's torchrun. In a container an absent folder does no harm.
    ``$$`` is torchx's way to write ``$``.
    """
    folder = Path(sys.executable).parent
    found = shutil.which(program)
    if found is None or Path(found).parent != folder:
        for role in app.roles:
            prefix = f'PATH={shlex.quote(str(folder))}:"$$PATH"'
            role.args[-1] = f"{prefix} {role.args[-1]}"
    return app


def check_retries(max_retries: int) -> int:
    """The same number.

    Raises:
        ValueError: for one that some scheduler refuses only after it was submitted.
    """
    if not 0 <= max_retries <= MAX_RETRIES:
        raise LaunchError(f"max_retries = {max_retries}: give 0 to {MAX_RETRIES}")
    return max_retries


def check_words(
    job: str, words: Sequence[str], example: str, verbs: Iterable[str] = ()
) -> None:
    """The first word must be a path, or one of ``verbs`` followed by a path.

    Raises:
        ValueError: if it is not: here and not after an hour in a queue.
    """
    known = tuple(verbs)
    hint = f"; example: torchx run sgrec.{job} {example}"
    if known and (not words or words[0] not in known):
        found = repr(words[0]) if words else "nothing"
        raise LaunchError(
            f"sgrec.{job}: expected one of {', '.join(known)}, found {found}{hint}"
        )
    paths = words[1:] if known else words
    if not paths or paths[0].startswith("-"):
        found = repr(paths[0]) if paths else "nothing"
        raise LaunchError(f"sgrec.{job}: expected a path, found {found}{hint}")


def assignments(settings: Mapping[str, str] | None) -> list[str]:
    """``--set`` before each: torchx itself refuses an option that is given twice."""
    return [
        word
        for name, value in (settings or {}).items()
        for word in ("--set", f"{name}={value}")
    ]


def called(app: AppDef, name: str) -> AppDef:
    """Give the only role the job's name, where torchx would say ``cli``."""
    app.roles[0].name = name
    return app


def one_process(
    job: str,
    words: Sequence[str],
    *,
    image: str,
    resource: specs.Resource,
    env: Mapping[str, str] | None,
    max_retries: int,
    mounts: Sequence[str] | None,
    port_map: Mapping[str, int] | None = None,
) -> AppDef:
    """``sgrec WORDS`` as a job of its own, without torchrun.

    The shell only finds python, then becomes it (``exec``): a scheduler's signals reach
    the program. ``$`` is doubled, because torchx replaces ``$name`` in arguments.
    """
    line = shlex.join(["python", "-m", CLI, *words]).replace("$", "$$")
    role = specs.Role(
        name=job,
        image=image,
        entrypoint="bash",
        args=["-c", f"exec {line}"],
        resource=resource,
        env=dict(env or {}),
        max_retries=check_retries(max_retries),
        port_map=dict(port_map or {}),
        mounts=specs.parse_mounts(list(mounts)) if mounts else [],
    )
    return with_program_on_path(AppDef(name=job, roles=[role]), "python")


def check_run(run: str, settings: Mapping[str, str] | None) -> None:
    """Read a run's settings as ``train.py`` will.

    Raises:
        ValueError: for an unknown run or setting, naming those that exist.
    """
    from sgrec_torchrec.config import RUNS
    from sgrec_torchrec.config.arguments import override

    if run not in RUNS:
        raise LaunchError(f"run = {run!r}: there are {', '.join(sorted(RUNS))}")
    try:
        override(RUNS[run], assignments(settings)[1::2])
    except ValueError as error:
        raise LaunchError(str(error)) from error


def check_server(host: str, port: int, settings: Mapping[str, str] | None) -> None:
    """Read a server's settings as ``sgrec serve`` will.

    Raises:
        ValueError: for an unknown setting, one outside its bounds, or port 0: a job
            cannot expose a port that is chosen after its start.
    """
    from sgrec_torchrec.serving.server.command import parse_settings

    if port == 0:
        raise LaunchError("port = 0: name the port that the job exposes")
    try:
        parse_settings({"host": host, "port": port}, settings or {}, None)
    except ValueError as error:
        raise LaunchError(str(error)) from error
