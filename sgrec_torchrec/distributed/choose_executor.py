"""An executor by the words that users give: processes of this machine, or Ray."""

from collections.abc import Iterator
from contextlib import contextmanager

from sgrec_torchrec.distributed.executor import Executor, InProcess

PROCESSES, RAY = "processes", "ray"


@contextmanager
def chosen_executor(
    kind: str, address: str | None, workers: int | None, gpus: float = 0.0
) -> Iterator[Executor]:
    """The executor, and what it started; that ends with the context.

    Args:
        kind: ``PROCESSES`` or ``RAY``.
        workers: tasks at a time on this machine; None: one a core.
        gpus: of a Ray cluster, for each task; a share where several fit on one.

    Raises:
        ValueError: for another kind, or what the kind does not take.
        ModuleNotFoundError: where Ray is asked for and not installed.
    """
    if kind == RAY:
        # An extra, and seconds of import.
        from sgrec_torchrec.distributed.ray_cluster import ray_cluster

        with ray_cluster(address, workers, gpus) as executor:
            yield executor
        return
    if kind != PROCESSES:
        raise ValueError(f"no executor {kind!r}: {PROCESSES} or {RAY}")
    for name, value in (("address", address), ("gpus", gpus)):
        if value:
            raise ValueError(f"--{name} is of a Ray cluster: add --executor {RAY}")
    yield InProcess(workers)
