"""A world of one process, and a small sharded model in it."""

import sys
from pathlib import Path

import pytest
import torch

from sgrec_torchrec.distributed.launch import process_group

RANKS = Path(__file__).parents[2] / "distributed" / "ranks"


@pytest.fixture(scope="session")
def small_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RANKS))
        import small_model

        yield small_model
    sys.modules.pop("small_model", None)


@pytest.fixture
def world(monkeypatch):
    """A process group of this process alone."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    num_threads = torch.get_num_threads()
    with process_group(device="cpu") as ranks:
        yield ranks
    torch.set_num_threads(num_threads)
