"""Prepared files are read whole by one rank of a host; a flipped bit ends all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

SCRIPT = "mapping.py"


@pytest.fixture
def flipped_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run with one bit of its item graph's weights flipped."""
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    path = tmp_path / "runs" / "tiny" / "graph" / "weights_E.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    return tmp_path / "runs" / "tiny"


def test_the_other_ranks_touch_no_page_of_what_the_first_has_verified(
    run_ranks: Any, finished_run: Path
) -> None:
    done = run_ranks(SCRIPT, 2, finished_run, finished_run)
    assert done.exit_codes == [0, 0], "\n".join(done.outputs)
    first, second = (json.loads(said.splitlines()[-1]) for said in done.outputs)
    assert {"weights_E.npy", "items.arrow", "tokens.parquet"} <= set(first["hashed"])
    assert second["hashed"] == []
    for folder in ("graph", "evidence"):
        assert first["touched"][f"{folder}/weights_E.npy"] > 0
        assert second["touched"][f"{folder}/weights_E.npy"] == 0
    arrays = [name for name in second["touched"] if name.endswith(".npy")]
    assert not any(second["touched"][name] for name in arrays)


def test_a_flipped_bit_is_found_by_the_first_rank_and_ends_the_job(
    run_ranks: Any, flipped_run: Path
) -> None:
    done = run_ranks(SCRIPT, 2, flipped_run, flipped_run, limit_s=60)
    assert done.exit_codes == [1, 1], "\n".join(done.outputs)
    assert "[rank 0] ValueError: " in done.outputs[0]
    assert "weights_E.npy is damaged (its SHA-256 is not" in done.outputs[0]
    assert "[rank 1] MainRankError: the main rank failed: " in done.outputs[1]
    assert "weights_E.npy is damaged (its SHA-256 is not" in done.outputs[1]


def test_the_first_rank_of_another_host_finds_what_its_host_sees_damaged(
    run_ranks: Any, finished_run: Path, flipped_run: Path
) -> None:
    done = run_ranks(SCRIPT, 2, finished_run, flipped_run, "other-host", limit_s=60)
    assert done.exit_codes == [1, 1], "\n".join(done.outputs)
    assert "weights_E.npy is damaged (its SHA-256 is not" in done.outputs[1]
    # both end before what follows the preparation
    assert not any("hashed" in said for said in done.outputs)
