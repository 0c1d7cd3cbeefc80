"""Post-training on the planted log: what it moves, ships, notes, and when it stops."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.a2po import align as loop
from sgrec_torchrec.a2po.advantage import FUSIONS
from sgrec_torchrec.a2po.align import align
from sgrec_torchrec.a2po.aligner import (
    BEST,
    NEWEST,
    Aligner,
    AlignState,
    build_aligner,
    restore_aligned,
)
from sgrec_torchrec.a2po.prompts import post_training_prompts
from sgrec_torchrec.a2po.reward import Group, next_item_reward
from sgrec_torchrec.config import AlignConfig, RunConfig
from sgrec_torchrec.distributed.tracking import MetricLine, read_metrics
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.offline import validation_ndcg
from sgrec_torchrec.logs.hashing import hash64
from sgrec_torchrec.logs.judged_users import history_hash
from sgrec_torchrec.reward_table import build_reward_table
from sgrec_torchrec.schema import SplitLog

SMALL = {
    "num_steps": 12,
    "global_batch_size": 16,
    "num_rollouts": 8,
    "prompts_per_user": 2,
    "lr": 1e-3,
    "warmup_steps": 2,
    "valid_every_steps": 4,
    "checkpoint_every_steps": 5,
    "keep_checkpoints": 10,
}
Weights = dict[str, Tensor]


class InterruptedRunError(Exception):
    """What a test raises in place of a crash."""


def weights_of(aligner: Aligner) -> Weights:
    """Copies of all weights, on one rank."""
    return {
        name: torch.cat([part.tensor for part in value.local_shards()])
        if hasattr(value, "local_shards")
        else value.clone()
        for name, value in aligner.dmp.state_dict().items()
    }


def differing(one: Weights, other: Weights) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, value in one.items() if not torch.equal(other[name], value)}


def metrics(aligner: Aligner) -> list[MetricLine]:
    return read_metrics(aligner.folder / "metrics.jsonl")


def figures(aligner: Aligner, name: str) -> list[float]:
    """One figure of all steps."""
    return [line.values[name] for line in metrics(aligner) if line.stage == "align"]


def step_names(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def scores(*values: float) -> Callable[[], float]:
    """A validation that knows its figures in advance."""
    left = iter(values)
    return lambda: next(left)


@pytest.fixture(scope="module")
def pretrained(finished_ranker: Ranker) -> Weights:
    tower = finished_ranker.dmp.module.tower
    return {name: value.clone() for name, value in tower.state_dict().items()}


MakeAligner = Callable[..., Aligner]


@pytest.fixture(scope="module")
def make_aligner_in(finished_ranker: Ranker, pretrained: Weights) -> MakeAligner:
    """make_aligner_in(folder, **align settings): from the pretrained weights."""

    def make(
        folder: Path, business=next_item_reward, semantic=None, **align
    ) -> Aligner:
        ranker = finished_ranker
        settings = AlignConfig(**(SMALL | align))
        config = replace(ranker.config, out_dir=str(folder), align=settings)
        ranker.dmp.module.tower.load_state_dict(pretrained)
        trainee = SimpleNamespace(dmp=ranker.dmp, config=config)
        return build_aligner(
            trainee, ranker.split, ranker.tokens, ranker.ranks, business, semantic
        )

    return make


@pytest.fixture
def make_aligner(make_aligner_in: MakeAligner, tmp_path: Path) -> MakeAligner:
    """make_aligner(business=..., semantic=..., **align settings)."""
    return lambda *rewards, **align: make_aligner_in(tmp_path, *rewards, **align)


@pytest.fixture(scope="module")
def table(finished_ranker: Ranker, tmp_path_factory) -> Path:
    """Every other prompt user is judged at the newest prompt, on every other item."""
    folder = tmp_path_factory.mktemp("judged")
    write_judgements(finished_ranker.split, finished_ranker.config, folder)
    build_reward_table(folder / "judged.parquet", folder / "table")
    return folder / "table"


def write_judgements(split: SplitLog, config: RunConfig, folder: Path) -> None:
    one_each = replace(config, align=AlignConfig(prompts_per_user=1))
    rows = post_training_prompts(split, one_each).rows
    columns: dict[str, list] = {
        name: [] for name in ("user_id", "item_id", "reward", "as_of", "history_hash")
    }
    for user, end in zip(rows.user_E[::2], rows.history_end_E[::2], strict=True):
        first = split.sequences.offsets_U1[user]
        items = split.sequences.items_R[first : first + end].tolist()
        seen = history_hash([split.catalogue.item_ids[item] for item in items])
        for item in range(0, split.sequences.num_items, 2):
            columns["user_id"].append(split.user_ids[user])
            columns["item_id"].append(split.catalogue.item_ids[item])
            columns["reward"].append(float(hash64(user, item)) / 2**64)
            columns["as_of"].append(int(end))
            columns["history_hash"].append(seen & 0xFFFFFFFFFFFFFFFF)
    columns["history_hash"] = pa.array(columns["history_hash"], pa.uint64())
    pq.write_table(pa.table(columns), folder / "judged.parquet")


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run."""

    aligner: Aligner
    state: AlignState
    start: Weights
    end: Weights
    start_ndcg: float
    end_ndcg: float


@pytest.fixture(scope="module")
def finished(
    make_aligner_in: MakeAligner, finished_ranker: Ranker, table: Path, tmp_path_factory
) -> Finished:
    """12 steps with a reward table, validated by the real thing."""
    folder = tmp_path_factory.mktemp("aligned")
    aligner = make_aligner_in(folder, table=str(table))
    validate = validation_ndcg(finished_ranker)
    start, start_ndcg = weights_of(aligner), validate()
    state = align(aligner, validate, resume=False)
    return Finished(
        aligner=aligner,
        state=state,
        start=start,
        end=weights_of(aligner),
        start_ndcg=start_ndcg,
        end_ndcg=validate(),
    )


def test_validations_are_noted_with_the_pretrained_one_first(
    finished: Finished,
) -> None:
    lines = [line for line in metrics(finished.aligner) if line.stage == "valid"]
    # After 4, 8 and 12 steps: noted with the step that they follow.
    assert [line.step for line in lines] == [0, 3, 7, 11]
    ndcg = [line.values["NDCG@10"] for line in lines]
    assert ndcg[0] == finished.start_ndcg == finished.state.start_ndcg
    assert finished.state.best_ndcg == max(ndcg)
    assert finished.state.best_step == [0, 4, 8, 12][int(np.argmax(ndcg))]
    assert finished.state.step == 12


def test_model_holds_the_best_validation_at_the_end(finished: Finished) -> None:
    assert finished.end_ndcg == finished.state.best_ndcg
    assert step_names(finished.aligner.folder / BEST) == [finished.state.best_step]
    assert step_names(finished.aligner.folder / NEWEST) == [5, 10, 12]


def test_tables_do_not_move_by_a_bit(finished: Finished, make_aligner) -> None:
    aligner = make_aligner()
    before = weights_of(aligner)
    align(aligner, None, resume=False)
    moved = differing(before, weights_of(aligner))
    tables = {name for name in before if name.startswith("tables.")}
    assert len(tables) == 5
    assert moved
    assert not tables & (moved | differing(finished.start, finished.end))
    assert moved == before.keys() - tables


def test_judgements_reach_the_steps_and_misses_are_logged(finished: Finished) -> None:
    aligner = finished.aligner
    assert np.mean(figures(aligner, "judged_share")) > 0
    assert 0 < np.mean(figures(aligner, "judged_rollouts")) < 0.5
    assert np.mean(figures(aligner, "mean_lambda")) > 0
    misses = aligner.semantic.misses
    assert 0 < misses.num_missing < misses.num_asked
    assert len(misses) > 0


def test_guards_are_quiet_in_a_healthy_run(finished: Finished) -> None:
    aligner = finished.aligner
    assert len(figures(aligner, "loss")) == 12
    assert set(figures(aligner, "bound_violations")) == {0.0}
    assert set(figures(aligner, "clamp_share")) == {0.0}
    assert set(figures(aligner, "clip_share")) == {0.0}  # one update a rollout
    kl = figures(aligner, "kl_mean")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > kl[0]
    assert all(0 < value <= 1 for value in figures(aligner, "distinct_top1"))
    assert all(0 < value < math.log(16) for value in figures(aligner, "entropy"))
    assert not finished.state.has_collapsed


def test_targets_become_likelier(make_aligner, finished_ranker: Ranker) -> None:
    def hit_share(aligner: Aligner) -> float:
        prompts = np.arange(len(aligner.prompts))
        rolled = loop._roll_out(aligner, prompts, step=0)
        target_E = torch.from_numpy(aligner.prompts.rows.target_E)[:, None]
        return float((rolled.rollout.item_BG == target_E).any(1).float().mean())

    aligner = make_aligner(num_steps=40, num_rollouts=8, lr=3e-3)
    before = hit_share(aligner)
    align(aligner, None, resume=False)
    assert hit_share(aligner) > before + 0.02


def test_resumed_run_equals_the_one_in_one_go(
    finished: Finished, make_aligner_in, finished_ranker, table: Path, tmp_path: Path
) -> None:
    real, calls = validation_ndcg(finished_ranker), []

    def crash() -> float:
        calls.append(0)
        if len(calls) == 3:  # after step 8; the newest checkpoint is of step 5
            raise InterruptedRunError
        return real()

    broken = make_aligner_in(tmp_path, table=str(table))
    with pytest.raises(InterruptedRunError):
        align(broken, crash, resume=False)
    assert step_names(broken.folder / NEWEST) == [5]
    assert len(figures(broken, "loss")) == 8
    resumed = make_aligner_in(tmp_path, table=str(table))
    first_steps: list[int] = []
    step_of = loop._step

    def spy(aligner, prompts, step):
        first_steps.append(step)
        return step_of(aligner, prompts, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", spy)
        state = align(resumed, real, resume=True)
    assert first_steps == list(range(5, 12))
    assert state == finished.state
    assert not differing(finished.end, weights_of(resumed))
    expected, got = (
        [(line.step, line.stage, line.values) for line in metrics(one)]
        for one in (finished.aligner, resumed)
    )
    assert got == expected


def test_finished_run_resumes_as_finished(
    finished: Finished, make_aligner_in, table: Path, tmp_path: Path
) -> None:
    folder = finished.aligner.config.run_dir
    shutil.copytree(folder, tmp_path / folder.name)
    aligner = make_aligner_in(tmp_path, table=str(table))
    assert align(aligner, scores(), resume=True) == finished.state
    assert not differing(finished.end, weights_of(aligner))
    assert len(metrics(aligner)) == len(metrics(finished.aligner))


def test_shipped_weights_are_read_back(
    finished: Finished, make_aligner_in, tmp_path: Path
) -> None:
    folder = finished.aligner.config.run_dir
    shutil.copytree(folder, tmp_path / folder.name)
    aligner = make_aligner_in(tmp_path)
    restore_aligned(aligner)
    assert not differing(finished.end, weights_of(aligner))


def test_nothing_post_trained_yet_is_said_so(make_aligner) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: post-train"):
        restore_aligned(make_aligner())


def test_run_goes_on_under_its_own_settings_alone(
    finished: Finished, make_aligner_in, table: Path, tmp_path: Path
) -> None:
    folder = finished.aligner.config.run_dir
    shutil.copytree(folder, tmp_path / folder.name)
    other = make_aligner_in(tmp_path, table=str(table), kl_weight=0.5)
    with pytest.raises(ValueError, match=r"align.kl_weight = 0.05, this run has 0.5"):
        align(other, scores(), resume=True)


def test_fresh_start_removes_what_an_older_run_left(make_aligner) -> None:
    aligner = make_aligner(num_steps=1)
    for name in (BEST, NEWEST):
        (aligner.folder / name / "step-000000000900").mkdir(parents=True)
    align(aligner, None, resume=False)
    assert step_names(aligner.folder / BEST) == [1]
    assert step_names(aligner.folder / NEWEST) == [1]


def test_resume_without_a_checkpoint_starts_fresh(make_aligner) -> None:
    aligner = make_aligner(num_steps=2)
    assert align(aligner, None, resume=True).step == 2
    assert len(figures(aligner, "loss")) == 2


def test_patience_stops_the_run_and_the_pretrained_model_ships(make_aligner) -> None:
    aligner = make_aligner(valid_every_steps=1, patience=3)
    start = weights_of(aligner)
    # An equal figure is no better one.
    state = align(aligner, scores(0.5, 0.49, 0.5, 0.48), resume=False)
    assert (state.step, state.best_step, state.stale_validations) == (3, 0, 3)
    assert not state.has_collapsed
    assert not differing(start, weights_of(aligner))


def test_patience_starts_anew_at_a_better_validation(make_aligner) -> None:
    aligner = make_aligner(valid_every_steps=1, patience=2, num_steps=6)
    seen: list[Weights] = []
    ndcg = scores(0.5, 0.49, 0.6, 0.59, 0.58)

    def validate() -> float:
        seen.append(weights_of(aligner))
        return ndcg()

    state = align(aligner, validate, resume=False)
    assert (state.step, state.best_step, state.best_ndcg) == (4, 2, 0.6)
    assert differing(seen[0], seen[2])
    assert not differing(seen[2], weights_of(aligner))


def test_collapsed_validation_restores_the_best_and_says_so(
    make_aligner, capsys
) -> None:
    aligner = make_aligner(valid_every_steps=1, min_ndcg_share=0.8)
    seen: list[Weights] = []
    ndcg = scores(0.5, 0.6, 0.401, 0.399)  # the floor is .8 x .5, of the pretrained

    def validate() -> float:
        seen.append(weights_of(aligner))
        return ndcg()

    state = align(aligner, validate, resume=False)
    assert state.has_collapsed
    assert (state.step, state.best_step) == (3, 1)
    assert not differing(seen[1], weights_of(aligner))
    told = "post-training has collapsed at step 3: validation NDCG@10 0.3990"
    assert told in capsys.readouterr().out


def test_sick_policy_restores_the_best_and_says_so(
    make_aligner, capsys, monkeypatch
) -> None:
    floors: list[float] = []

    def health(figures: dict[str, float], min_distinct: float) -> str | None:
        floors.append(min_distinct)
        return "the test says so" if len(floors) == 2 else None

    monkeypatch.setattr(loop, "health", health)
    aligner = make_aligner(min_distinct_share=0.25)
    start = weights_of(aligner)
    state = align(aligner, scores(0.5, 0.5), resume=False)
    assert state.has_collapsed
    assert state.step == 3  # of the first step only the breadth is noted
    assert not differing(start, weights_of(aligner))
    first = figures(aligner, "distinct_top1")[0]
    assert floors == [0.25 * first] * 2
    told = "post-training has collapsed at step 3: the test says so"
    assert told in capsys.readouterr().out


def test_policy_that_has_lost_its_breadth_is_found_out(make_aligner) -> None:
    # All prompts are told that item 0 is what followed.
    def always_zero(group: Group) -> Tensor:
        return (group.item_BG == 0).float()

    aligner = make_aligner(always_zero, num_steps=40, lr=3e-2, kl_weight=0.0)
    start = weights_of(aligner)
    state = align(aligner, scores(*[0.5] * 11), resume=False)
    assert state.has_collapsed
    assert state.step < 40
    assert not differing(start, weights_of(aligner))


def test_diverged_loss_ships_the_pretrained_model(make_aligner, monkeypatch) -> None:
    def poisoned(*rest, **words):
        batch = real(*rest, **words)
        terms = replace(batch.terms, advantage_S=batch.terms.advantage_S * math.nan)
        return replace(batch, terms=terms)

    real = loop.policy_batch
    monkeypatch.setattr(loop, "policy_batch", poisoned)
    aligner = make_aligner()
    start = weights_of(aligner)
    state = align(aligner, scores(0.5), resume=False)
    assert state.has_collapsed
    assert state.step == 2
    assert not differing(start, weights_of(aligner))


def no_reward(group: Group) -> Tensor:
    return torch.zeros(group.item_BG.shape)


def test_step_without_a_live_group_updates_nothing(make_aligner) -> None:
    aligner = make_aligner(no_reward, num_steps=3)
    start = weights_of(aligner)
    assert align(aligner, None, resume=False).step == 3
    assert not differing(start, weights_of(aligner))
    assert figures(aligner, "dead_share") == [1.0] * 3
    assert figures(aligner, "loss") == [0.0] * 3


def bad_for_item_3(group: Group) -> Tensor:
    reward_BG = next_item_reward(group)
    return reward_BG.masked_fill(group.item_BG == 3, math.nan)


def test_reward_that_is_not_finite_stops_the_run_by_name(make_aligner) -> None:
    with pytest.raises(ValueError, match=r"user 'u\d+', item 'i\d+': business reward"):
        align(make_aligner(bad_for_item_3), None, resume=False)


def test_groups_with_a_bad_reward_are_dropped_and_counted_where_asked(
    make_aligner,
) -> None:
    aligner = make_aligner(bad_for_item_3, num_steps=4, drop_bad_rewards=True)
    align(aligner, None, resume=False)
    dropped = figures(aligner, "dropped_share")
    assert 0 < np.mean(dropped) < 1
    assert all(math.isfinite(loss) for loss in figures(aligner, "loss"))
    assert all(
        math.isfinite(value)
        for line in metrics(aligner)
        for value in line.values.values()
    )


def test_table_that_is_not_there_is_an_error_before_any_step(
    make_aligner, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no-table"):
        make_aligner(table=str(tmp_path / "no-table"))


def some_semantics(group: Group) -> tuple[Tensor, Tensor]:
    """Half of the rollouts are judged, by their item's number."""
    return (group.item_BG % 7).float(), group.item_BG % 2 == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_runs(make_aligner, fusion: str) -> None:
    aligner = make_aligner(next_item_reward, some_semantics, num_steps=2, fusion=fusion)
    start = weights_of(aligner)
    align(aligner, None, resume=False)
    assert differing(start, weights_of(aligner))
    assert all(math.isfinite(loss) for loss in figures(aligner, "loss"))
    is_bound = fusion in ("a2po", "grpo")
    assert (sum(figures(aligner, "bound_violations")) == 0) == is_bound
    assert np.mean(figures(aligner, "judged_share")) > 0


def test_beams_and_several_updates_on_the_same_rollouts(make_aligner) -> None:
    once, twice = (
        make_aligner(num_steps=1, updates_per_rollout=updates, rollouts="beam", lr=0.01)
        for updates in (1, 2)
    )
    align(once, None, resume=False)
    after_one = weights_of(once)
    assert figures(once, "kl_mean")[0] == pytest.approx(0.0, abs=1e-6)
    twice = make_aligner(
        num_steps=1, updates_per_rollout=2, rollouts="beam", lr=0.01, warmup_steps=0
    )
    align(twice, None, resume=False)
    assert differing(after_one, weights_of(twice))
    # The figures are of the last update, whose policy has moved on.
    assert figures(twice, "kl_mean")[0] > 1e-6
    assert figures(twice, "clip_share")[0] > 0


def test_value_of_the_target_weighs_its_group(make_aligner) -> None:
    aligner = make_aligner(num_steps=1)
    light = replace(
        aligner.prompts,
        value_weight_E=np.full(len(aligner.prompts), 0.5, np.float32),
    )
    align(aligner, None, resume=False)
    whole = figures(aligner, "loss")
    halved = make_aligner(num_steps=1)
    halved = replace(halved, prompts=light)
    align(halved, None, resume=False)
    assert whole[0] != 0
    assert figures(halved, "loss") == [pytest.approx(whole[0] / 2, rel=1e-5)]


@pytest.fixture
def copied_runs(finished_run: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    yield tmp_path / "runs"


def test_training_command_post_trains_and_resumes_as_finished(
    copied_runs: Path, planted_log, tiny_arguments, train_here
) -> None:
    changes = [f"align.{name}={value}" for name, value in SMALL.items()]
    argv = tiny_arguments(planted_log(), copied_runs, *changes)
    train_here([*argv, "--resume"])
    run_dir = copied_runs / "tiny"
    lines = read_metrics(run_dir / "aligned" / "metrics.jsonl")
    assert [line.step for line in lines if line.stage == "align"] == list(range(12))
    assert (run_dir / "report.html").is_file()
    train_here([*argv, "--resume"])
    assert read_metrics(run_dir / "aligned" / "metrics.jsonl") == lines
