"""Process group of a run: one process or many, under torchrun or plain python.

Turns the environment of ``torchrun`` into ``Ranks`` and guards the three moments at
which ranks wait for each other outside a training step: start, preparation, end.
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, Store, TCPStore
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from sgrec_torchrec.config.arguments import USER_ERRORS, wants_traceback
from sgrec_torchrec.distributed.heartbeat import SILENCE_S, Heartbeat
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.distributed.termination import TerminatedError

T = TypeVar("T")

COLLECTIVE_TIMEOUT_S = 300.0
HEARTBEAT_S = 2.0
SILENCE_LIMIT_S = SILENCE_S
READ_WAIT_S = 5.0
SHARED_FOLDER_WAIT_S = 30.0
ROLL_CALL_S = 50.0
"""How long a rank waits for the others to arrive, where each has a core of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Who this process is among all; ``device`` is where its tensors live."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device


@contextmanager
def process_group(
    *,
    device: str | None = None,
    timeout_s: float = COLLECTIVE_TIMEOUT_S,
    silence_s: float = SILENCE_S,
) -> Iterator[Ranks]:
    """Start the default process group, yield this process's place in it, end it.

    Under torchrun (``WORLD_SIZE`` is set) the ranks meet at its store; plain python
    makes a world of one without a port. CPU tensors go through gloo, CUDA tensors
    through NCCL. A collective that waits longer than ``timeout_s`` fails; a rank that
    gives no sign of life for ``silence_s`` is named, and ends the others
    (``Heartbeat``).

    On a normal end all ranks meet at a barrier first: else those that are done would
    sit in torchelastic's exit barrier (300 s) while another one has died. On an
    exception in a world of more than one, the error is printed with the rank,
    recorded for torchelastic, and the process leaves at once, so that its peers see a
    closed connection instead of silence.

    Args:
        device: cpu or cuda; None takes cuda where each local rank can have its own.

    Raises:
        ValueError: for cuda with fewer devices than ranks on this host.
    """
    ranks = _read_ranks(device)
    limit_threads(ranks.local_world_size)
    timeout = timedelta(seconds=timeout_s)
    backend = "gloo"
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
        backend = "cpu:gloo,cuda:nccl"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _call_the_roll(ranks)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(
            backend, store=HashStore(), rank=0, world_size=1, timeout=timeout
        )
    with ExitStack() as stack:
        stack.enter_context(Heartbeat(ranks.rank, ranks.world_size, silence_s))
        stack.push(partial(_finish, ranks))
        yield ranks


def limit_threads(local_world_size: int) -> None:
    """Give each of ``local_world_size`` processes its share of this host's cores.

    What the user asks for by ``OMP_NUM_THREADS`` stays; under torchrun, which sets it
    to 1 unasked, it does not count.
    """
    is_asked = (
        "OMP_NUM_THREADS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    )
    if not is_asked:
        torch.set_num_threads(max(1, _num_cores() // local_world_size))


class MainRankError(RuntimeError):
    """What ended the main rank, on a rank that waited for it."""


def main_rank_first(function: Callable[[], T], *, shared_path: Path | None = None) -> T:
    """Run ``function`` on the main rank, and only then on all others.

    For a preparation that may take minutes: the main rank makes and writes, the
    others find it written and load it. They wait at the store, not in a collective,
    so no collective timeout applies. All ranks must call, in the same order.

    Args:
        shared_path: what the main rank writes. A host that cannot see it within 30 s
            shares no folder with the main rank.

    Raises:
        MainRankError: on the other ranks, within seconds, when the main rank failed
            (with its message).
        RuntimeError: there, when it fell silent for ``SILENCE_LIMIT_S``.
        FileNotFoundError: where ``shared_path`` is not visible on this host.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return function()
    store = _get_default_store()
    turn = store.add(f"sgrec/turn_of_{dist.get_rank()}", 1)
    key = f"sgrec/main_rank_first/{turn}"
    if dist.get_rank() == 0:
        return _lead(store, key, function)
    host = _follow(store, key)
    if shared_path is not None:
        _await_path(shared_path, host)
    try:
        return function()
    except FileNotFoundError as error:
        if host != socket.gethostname():
            error.add_note(_no_shared_folder(host))
        raise


def all_gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks end to end, in rank order, on every rank.

    Args:
        rows: [n_i, ...] on the rank's device; n_i may differ and be 0, the other
            dimensions and the dtype must agree.

    Returns:
        [sum n_i, ...]. Collective. Memory grows with world size times the largest
        n_i. No gradient flows.
    """
    rows = rows.detach().contiguous()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    world_size = dist.get_world_size()
    count = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world_size)]
    dist.all_gather(counts, count)
    lengths = [int(one) for one in torch.cat(counts).tolist()]
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.cat(
        [part[:length] for part, length in zip(parts, lengths, strict=True)]
    )


def _read_ranks(device: str | None) -> Ranks:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device is None:
        device = "cuda" if num_gpus >= local_world_size else "cpu"
        if device == "cpu" and num_gpus and is_main_rank():
            print(
                f"{local_world_size} ranks on this host, {num_gpus} GPUs: running on "
                f"the CPU; start at most {num_gpus} ranks a host to use the GPUs",
                file=sys.stderr,
            )
    if device == "cuda" and num_gpus < local_world_size:
        raise ValueError(
            f"device = 'cuda': {local_world_size} ranks on this host but {num_gpus} "
            "GPUs; start one rank per GPU"
        )
    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=local_rank,
        local_world_size=local_world_size,
        device=torch.device("cuda", local_rank)
        if device == "cuda"
        else torch.device("cpu"),
    )


def _num_cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _call_the_roll(ranks: Ranks) -> None:
    """Wait until every rank has started; say which did not.

    Without it, a rank that dies before the process group exists leaves the others
    waiting for the whole collective timeout. Ranks that share a core start one after
    the other, so the patience grows with their number per core.
    """
    crowd = max(1.0, ranks.local_world_size / _num_cores())
    patience = timedelta(seconds=ROLL_CALL_S * crowd)
    # The agent's store: it is there before any rank, and outlives them.
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=patience,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    names = [f"sgrec/{attempt}/arrived/{rank}" for rank in range(ranks.world_size)]
    store.set(names[ranks.rank], "1")
    try:
        store.wait(names, patience)
    except dist.DistStoreError:
        absent = [rank for rank, name in enumerate(names) if not store.check([name])]
        raise RuntimeError(
            f"ranks {absent} did not start within {patience.total_seconds():.0f} s of "
            f"rank {ranks.rank}: see their errors"
        ) from None


def _finish(
    ranks: Ranks,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> bool:
    if error is None or isinstance(error, TerminatedError):
        dist.barrier()
    if error is None or isinstance(error, TerminatedError) or ranks.world_size == 1:
        dist.destroy_process_group()
        return False
    if isinstance(error, (*USER_ERRORS, MainRankError)) and not wants_traceback():
        text = f"{type(error).__name__}: {error}"
    else:
        text = "".join(traceback.format_exception(kind, error, trace))
    marked = "".join(f"[rank {ranks.rank}] {line}\n" for line in text.splitlines())
    sys.stdout.flush()
    sys.stderr.write(marked)
    sys.stderr.flush()
    if not isinstance(error, MainRankError):
        # The launcher shows it in full; of many, one rank's is the cause.
        get_error_handler().record_exception(error)
    # No orderly teardown: it would wait for peers that wait for this rank.
    os._exit(1)


def _lead(store: Store, key: str, function: Callable[[], T]) -> T:
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(store, key, done), daemon=True)
    with ExitStack() as stack:
        stack.push(partial(_publish, store, key, done, heart))
        heart.start()
        return function()


def _beat(store: Store, key: str, done: threading.Event) -> None:
    while not done.is_set():
        store.add(f"{key}/beats", 1)
        done.wait(HEARTBEAT_S)


def _publish(
    store: Store,
    key: str,
    done: threading.Event,
    heart: threading.Thread,
    _kind: type[BaseException] | None,
    error: BaseException | None,
    _trace: TracebackType | None,
) -> bool:
    done.set()
    heart.join()
    if error is None:
        store.set(key, f"ok {socket.gethostname()}")
    else:
        store.set(key, f"error {type(error).__name__}: {error}")
        _await_readers(store, key)
    return False


def _await_readers(store: Store, key: str) -> None:
    # The store may live in this process: it must not end before all have read.
    deadline = time.monotonic() + READ_WAIT_S
    while store.add(f"{key}/readers", 0) < dist.get_world_size() - 1:
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _follow(store: Store, key: str) -> str:
    """Wait for the main rank's verdict; return its host."""
    try:
        _await_verdict(store, key)
        text: str
        verdict, _, text = store.get(key).decode().partition(" ")
        store.add(f"{key}/readers", 1)
    except dist.DistNetworkError as error:
        raise RuntimeError(
            "the store that the ranks meet at is gone: the main rank or its host died; "
            "see its output for the cause"
        ) from error
    if verdict != "ok":
        raise MainRankError(f"the main rank failed: {text}")
    return text


def _await_verdict(store: Store, key: str) -> None:
    last_beat, heard_at = 0, time.monotonic()
    pause_s = 0.02
    while not store.check([key]):
        beat = store.add(f"{key}/beats", 0)
        if beat != last_beat:
            last_beat, heard_at = beat, time.monotonic()
        elif time.monotonic() - heard_at > SILENCE_LIMIT_S:
            raise RuntimeError(
                f"the main rank gave no sign of life for {SILENCE_LIMIT_S:.0f} s; "
                "see its output for the cause"
            )
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.5)


def _await_path(path: Path, host: str) -> None:
    # A network file system may show a new file some seconds late.
    deadline = time.monotonic() + SHARED_FOLDER_WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"{path}: {_no_shared_folder(host)}")
        time.sleep(0.5)


def _no_shared_folder(host: str) -> str:
    return (
        f"written by the main rank on host {host}, not visible on host "
        f"{socket.gethostname()}: set out_dir to a folder that all hosts share"
    )
