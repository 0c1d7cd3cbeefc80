"""Post-training on 1, 2 and 4 ranks: equal updates, figures and whole runs."""

from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.files.tracking import MetricLine, read_metrics

NUM_STEPS = 6


@pytest.fixture(scope="module")
def aligned():
    """The script of the ranks, as a module: this process is the world of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent / "ranks"))
        import aligned

        yield aligned


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {size: tmp_path_factory.mktemp(f"world-{size}") for size in (1, 2, 4)}


@pytest.fixture(scope="module")
def runs(
    run_ranks, finished_run, finished_ranker, aligned, folders
) -> dict[int, dict[str, np.ndarray]]:
    """World size -> all arrays; what runs left lies in ``folders``."""
    seen = {1: aligned.everything(finished_ranker, folders[1])}
    for world_size in (2, 4):
        folder = folders[world_size]
        done = run_ranks(
            "aligned.py", world_size, folder / "seen.npz", finished_run, folder
        )
        assert done.exit_codes == [0] * world_size, "\n".join(done.outputs)
        with np.load(folder / "seen.npz", allow_pickle=False) as arrays:
            seen[world_size] = dict(arrays)
    return seen


def part(run: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in run.items() if k.startswith(prefix)}


def whole(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([value.ravel() for value in arrays.values()])


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Relative to ``one``, over all tensors together."""
    assert one.keys() == other.keys()
    assert one
    gap = np.linalg.norm(whole(one) - whole(other))
    return float(gap / np.linalg.norm(whole(one)))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("scene", ["all", "fourth"])
def test_updates_on_replayed_rollouts_agree(runs, scene: str, world_size: int) -> None:
    # In "fourth" all that teaches is on rank 0: the others go along at weight 0.
    for step in range(2):
        for kind in ("gradient", "weight"):
            one, other = (
                part(runs[size], f"{scene}/{step}/{kind}/") for size in (1, world_size)
            )
            assert distance(one, other) < 1e-5, kind


def test_updates_differ_between_steps_and_scenes(runs) -> None:
    # Else the test above would compare nothing.
    first, second, other = (
        part(runs[1], prefix)
        for prefix in ("all/0/weight/", "all/1/weight/", "fourth/0/weight/")
    )
    assert distance(first, second) > 1e-4
    assert distance(first, other) > 1e-4


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_figures_of_unequal_ranks_are_combined_by_hand(runs, world_size: int) -> None:
    figures = part(runs[world_size], "figures/")
    expected = {
        "mean_item": 32 / 7,
        "of_nothing": 0.0,
        "bound_violations": 5.0,  # a count, not a mean over ranks
        "distinct_top1": 4 / 7,  # 5, 7, 1 and 2, on whatever rank
        "kl_mean": 2.0,
        "kl_p99": 3.96,  # of 0, 1, 2, 3, 4
    }
    assert {name: float(value) for name, value in figures.items()} == (
        pytest.approx(expected)
    )


def lines_of(folder: Path, name: str) -> list[MetricLine]:
    return read_metrics(folder / name / "aligned" / "metrics.jsonl")


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("name", ["run", "two"])
def test_whole_runs_have_the_same_figures(
    runs, folders, name: str, world_size: int
) -> None:
    # In "two" a step has two prompts: of four ranks two ask along without their own.
    expected, got = (lines_of(folders[size], name) for size in (1, world_size))
    assert [(line.step, line.stage) for line in got] == [
        (line.step, line.stage) for line in expected
    ]
    assert sum(line.stage == "align" for line in got) == NUM_STEPS
    for one, other in zip(expected, got, strict=True):
        assert other.values == pytest.approx(one.values, abs=1e-4), one.step


def test_runs_learn_from_some_groups_and_not_from_all(runs, folders) -> None:
    lines = [line for line in lines_of(folders[1], "run") if line.stage == "align"]
    assert all(0 < line.values["dead_share"] < 1 for line in lines)
    assert lines[-1].values["kl_mean"] > 0
    assert runs[1]["run/best_step"] == runs[2]["run/best_step"]
