"""How ranks wait for each other, and how soon one that dies ends the others.

Collectives are given 300 s in the scenes with a dead rank, and the ranks 60 s to end:
a rank that waited for the timeout would fail the test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = "launching.py"


def test_rows_of_unequal_number_are_gathered_in_rank_order(run_ranks):
    done = run_ranks(SCRIPT, 3, "gather_unequal", 30)
    assert done.exit_codes == [0, 0, 0], "\n".join(done.outputs)


def test_waiting_for_the_main_rank_outlasts_the_collective_timeout(run_ranks):
    done = run_ranks(SCRIPT, 2, "wait_beyond_the_timeout", 3)
    assert done.exit_codes == [0, 0], "\n".join(done.outputs)


def test_failed_preparation_stops_all_ranks_with_its_message(run_ranks):
    done = run_ranks(SCRIPT, 2, "fail_while_preparing", 300, limit_s=60)
    assert done.exit_codes == [1, 1], "\n".join(done.outputs)
    assert "[rank 0] ValueError: items.parquet: row 7" in done.outputs[0]
    message = "the main rank failed: ValueError: items.parquet: row 7 has no title"
    assert f"[rank 1] MainRankError: {message}" in done.outputs[1]
    # What a user got wrong is one line a rank.
    assert not any("Traceback" in text for text in done.outputs)


def test_a_traceback_is_there_for_who_asks(run_ranks, monkeypatch):
    monkeypatch.setenv("SGREC_TRACEBACK", "1")
    done = run_ranks(SCRIPT, 2, "fail_while_preparing", 300, limit_s=60)
    assert done.exit_codes == [1, 1], "\n".join(done.outputs)
    assert all("Traceback" in text for text in done.outputs)


def test_killed_main_rank_stops_those_that_wait_for_its_preparation(run_ranks):
    done = run_ranks(SCRIPT, 2, "be_killed_while_preparing", 300, limit_s=60)
    assert done.exit_codes == [-9, 1], "\n".join(done.outputs)
    assert "the main rank or its host died" in done.outputs[1]


def test_folder_that_a_host_cannot_see_is_named(run_ranks):
    done = run_ranks(SCRIPT, 2, "miss_the_shared_folder", 300, limit_s=60)
    assert done.exit_codes == [1, 1], "\n".join(done.outputs)
    assert "/nonexistent/graph: written by the main rank" in done.outputs[1]
    assert "set out_dir to a folder that all hosts share" in done.outputs[1]


@pytest.mark.parametrize(
    ("scene", "code"), [("raise_on_one_rank", 1), ("be_killed_on_one_rank", -9)]
)
def test_dying_rank_ends_the_one_that_waits_for_it(run_ranks, scene, code):
    done = run_ranks(SCRIPT, 2, scene, 300, limit_s=60)
    assert done.exit_codes == [1, code], "\n".join(done.outputs)
    assert "finished" not in done.outputs[0]


@pytest.mark.parametrize(
    ("scene", "which", "who"),
    [
        ("stop_rank_1", 1, "rank 1 on host "),
        ("stop_rank_0", 0, "rank 0, which holds the store"),
        ("stop_rank_0_while_preparing", 0, "rank 0, which holds the store"),
    ],
)
def test_stopped_rank_is_named_long_before_the_timeout(run_ranks, scene, which, who):
    done = run_ranks(SCRIPT, 2, scene, 300, 4, limit_s=60)
    codes = [1, 1]
    codes[which] = -9
    assert done.exit_codes == codes, "\n".join(done.outputs)
    said = done.outputs[1 - which]
    assert f"{who}" in said
    assert "gave no sign of life for 4 s" in said


def test_a_rank_that_wakes_in_time_is_waited_for(run_ranks):
    done = run_ranks(SCRIPT, 2, "hold_no_one_who_was_asleep", 300, 10, limit_s=60)
    assert done.exit_codes == [0, 0], "\n".join(done.outputs)


def test_torchrun_job_ends_when_a_rank_dies_after_the_other_is_done():
    script = Path(__file__).parent / "ranks" / SCRIPT
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    scene = ["--nproc-per-node=2", str(script), "raise_when_the_other_is_done", "300"]
    done = subprocess.run(
        [*command, *scene],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    assert "[rank 1] ValueError: too late" in done.stderr
    assert "finished" not in done.stdout
