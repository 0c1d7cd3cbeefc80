"""The same run on 1, 2 and 4 ranks: equal losses, lists and figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.files.tracking import read_metrics

NUM_LOSSES = 50
NUM_ROWS = 7
"""Of the ranked rows: on 2 and 4 ranks the last shares are padded."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def runs(
    run_ranks, finished_run, planted_log, tiny_arguments, train_here, outputs
) -> dict[int, Path]:
    """World size -> run folder; ``outputs`` holds runs of a log with 3 users too."""
    folders = {1: finished_run}
    train_here(tiny_arguments(planted_log(3), outputs / "world-1", name="three"))
    for world_size in (2, 4):
        out_dir = outputs / f"world-{world_size}"
        words = tiny_arguments(planted_log(), out_dir)
        if world_size == 4:
            words += ["--then", *tiny_arguments(planted_log(3), out_dir, name="three")]
        done = run_ranks(
            "training_runs.py",
            world_size,
            *(outputs / "lists", finished_run, *words),
            limit_s=300,
        )
        assert done.exit_codes == [0] * world_size, "\n".join(done.outputs)
        folders[world_size] = out_dir / "tiny"
        for rank in range(world_size):
            lists = outputs / f"lists-{rank}.npz"
            lists.rename(outputs / f"lists-{world_size}-{rank}.npz")
    return folders


def losses(run_dir: Path) -> list[float]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [line.values["loss"] for line in lines if line.stage == "pretrain"]


def metrics(run_dir: Path) -> dict[str, dict[str, float]]:
    results = json.loads((run_dir / "evaluation" / "results.json").read_text())
    return {system["system"]: system["metrics"] for system in results["systems"]}


@pytest.mark.parametrize("world_size", [2, 4])
def test_first_losses_agree_at_equal_global_batch(runs, world_size: int) -> None:
    config = json.loads((runs[1] / "config.json").read_text())
    assert config["generator"]["dropout"] > 0
    assert config["pretrain"]["teacher_weight"] > 0
    expected = losses(runs[1])[:NUM_LOSSES]
    assert len(expected) == NUM_LOSSES
    np.testing.assert_allclose(
        losses(runs[world_size])[:NUM_LOSSES], expected, rtol=1e-5
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_final_metrics_agree(runs, world_size: int) -> None:
    expected, got = metrics(runs[1]), metrics(runs[world_size])
    assert expected.keys() == got.keys()
    assert "popularity" in got
    for system, values in expected.items():
        for name, value in values.items():
            # Near ties may fall the other way: two users of 200, at most.
            assert got[system][name] == pytest.approx(value, abs=0.01), (system, name)


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_gets_the_lists_of_one_rank(
    runs, outputs: Path, finished_ranker, world_size: int
) -> None:
    rows = finished_ranker.split.test.take(np.arange(NUM_ROWS))
    (top,) = finished_ranker.top_items(rows, (0.4,))
    for rank in range(world_size):
        path = outputs / f"lists-{world_size}-{rank}.npz"
        with np.load(path, allow_pickle=False) as lists:
            np.testing.assert_array_equal(
                lists["items_EK"][:, :10], top.item_EW[:, :10]
            )
            np.testing.assert_allclose(lists["score_EK"], top.score_EW, rtol=1e-4)


def test_ranks_without_a_sample_train_and_evaluate_along(runs, outputs: Path) -> None:
    expected, got = (outputs / f"world-{size}" / "three" for size in (1, 4))
    # One step an epoch: rank 3 of 4 never has a sample, and no row to rank.
    assert len(losses(expected)) == 4
    np.testing.assert_allclose(losses(got), losses(expected), rtol=1e-5)
    assert metrics(got).keys() == metrics(expected).keys()
    assert (got / "report.html").is_file()
