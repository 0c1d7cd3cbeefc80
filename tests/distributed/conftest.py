"""Starts a script once per rank, as torchrun would, and waits with a limit."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

SCRIPTS = Path(__file__).parent / "ranks"


@dataclass(frozen=True)
class Finished:
    """How each rank ended."""

    exit_codes: list[int]
    outputs: list[str]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def run_ranks(warm_python: Path, shared_folder: Path) -> Callable[..., Finished]:
    """run_ranks(script, world_size, *arguments, limit_s=120) -> Finished.

    Every rank is killed and the test fails when one is not done after ``limit_s``.
    All workers together have one such launch at a time.
    """

    def run(
        script: str, world_size: int, *arguments: object, limit_s: float = 120
    ) -> Finished:
        place = {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [str(warm_python), str(SCRIPTS / script), *map(str, arguments)]
        one_launch = FileLock(shared_folder / "launch.lock")
        with one_launch, tempfile.TemporaryDirectory() as folder:
            # Files, not pipes: a full pipe would block a rank that nobody reads.
            outputs = [Path(folder) / f"{rank}.txt" for rank in range(world_size)]
            started = []
            for rank, output in enumerate(outputs):
                env = {**os.environ, **place, "RANK": str(rank)}
                with output.open("w") as file:
                    one = subprocess.Popen(
                        command,
                        env={**env, "LOCAL_RANK": str(rank)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                started.append(one)
            try:
                exit_codes = [one.wait(timeout=limit_s) for one in started]
            finally:
                for one in started:
                    one.kill()
                    one.wait()
            return Finished(exit_codes, [one.read_text() for one in outputs])

    return run
