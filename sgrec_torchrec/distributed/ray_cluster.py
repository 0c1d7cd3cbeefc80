"""Tasks on a Ray cluster, or on Ray's own processes of this machine (extra ``ray``).

Ray pickles the calls, between hosts that trust each other as those of a job do; data
passes through files alone. All hosts see the folder of the runs by one path.
"""

import logging
import os
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from sgrec_torchrec.distributed.executor import see_through
from sgrec_torchrec.distributed.progress import say_nothing
from sgrec_torchrec.distributed.tasks import Kind, Work, do, is_done
from sgrec_torchrec.files.origin import code_key

LOST = (WorkerCrashedError, NodeDiedError, LocalRayletDiedError, OutOfMemoryError)
CONNECT_S = 10.0
"""Ray itself tries an address that nobody listens at for minutes."""
OBJECT_STORE_BYTES = 80 << 20
"""The smallest that Ray takes: no data passes through it."""


class RayExecutor:
    """Tasks on a cluster, one at a time for each CPU that it has.

    Args:
        gpus: that each task takes besides; a share where several fit on one.
    """

    def __init__(self, gpus: float = 0.0) -> None:
        self.gpus = gpus

    def map(
        self, function: Work[Kind], tasks: Sequence[Kind], *, description: str
    ) -> list[Path]:
        """See ``Executor``."""
        left = [task for task in tasks if not is_done(function, task)]
        see_through(_calls(function, left, self.gpus), left, len(tasks), description)
        return [task.out for task in tasks]


@contextmanager
def ray_cluster(
    address: str | None, workers: int | None, gpus: float = 0.0
) -> Iterator[RayExecutor]:
    """Connect to a cluster, or start one on this machine that ends with the context.

    Args:
        address: as ``host:6379``, "auto" for the one of this host, "local" or None for
            processes of this machine.
        workers: tasks at a time on this machine; None: one a core. A cluster says
            itself how many it has.
        gpus: that each task takes.

    Raises:
        ValueError: where the cluster cannot be reached, runs another version, or has
            fewer GPUs than one task takes.
    """
    is_local = address in (None, "local")
    if workers is not None and not is_local:
        raise ValueError("--workers: a Ray cluster says itself how many tasks it takes")
    options: dict[str, Any] = {"address": address}
    if is_local:
        options = {
            "address": "local",
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    # Ray would tell its makers about the cluster, unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _check_listens(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (RuntimeError, OSError, ValueError, RayError) as error:
        raise ValueError(
            f"no Ray cluster at {address}: {' '.join(str(error).split())}"
        ) from error
    try:
        # Ray would wait for ever for a GPU that no host has.
        resources: Any = ray.cluster_resources  # it has no types
        if gpus > (there := resources().get("GPU", 0.0)):
            raise ValueError(f"--gpus {gpus:g}: the cluster has {there:g} in all")
        yield RayExecutor(gpus)
    finally:
        ray.shutdown()


def _check_listens(address: str | None) -> None:
    """Raise OSError where nobody answers at a ``host:port``."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _calls(
    function: Work[Kind], left: Sequence[Kind], gpus: float
) -> Generator[tuple[int, str | None], None, None]:
    """As ``see_through`` takes them."""
    # Ray's own retries are not counted anywhere: lost tasks are given again here.
    remote: Any = ray.remote(max_retries=0, num_gpus=gpus)(_do)

    def give(number: int) -> Any:
        return remote.remote(function, left[number], code_key())

    running = {give(number): number for number in range(len(left))}
    try:
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            number, reason = running.pop(ended), _lost(ended)
            yield number, reason
            if reason is not None:
                running[give(number)] = number
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _do(function: Work[Kind], task: Kind, code: str) -> None:
    say_nothing()
    do(function, task, code)


def _lost(reference: Any) -> str | None:
    """How a task was lost with its worker; None where it was done.

    Raises:
        Exception: what the task raised.
    """
    try:
        ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except LOST as error:
        return f"{type(error).__name__} on a host of the cluster"
    return None
