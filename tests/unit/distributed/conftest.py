"""A world of one process, and a small sharded model in it."""

import sys
from pathlib import Path

import pytest
import torch

from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.files.run_folder import MANIFEST

RANKS = Path(__file__).parents[2] / "distributed" / "ranks"


@pytest.fixture(scope="session")
def small_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RANKS))
        import small_model

        yield small_model
    sys.modules.pop("small_model", None)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """The manifest of what all tasks read."""
    path = tmp_path / "given" / MANIFEST
    path.parent.mkdir()
    path.write_text("{}")
    return path


@pytest.fixture
def world(monkeypatch):
    """A process group of this process alone."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    num_threads = torch.get_num_threads()
    with process_group(device="cpu") as ranks:
        yield ranks
    torch.set_num_threads(num_threads)
