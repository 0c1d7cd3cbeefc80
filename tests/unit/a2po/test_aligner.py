"""What post-training leaves in files: it goes on exactly, and ships, from them."""

import os
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.a2po import align as loop
from sgrec_torchrec.a2po.aligner import (
    is_current,
    restore_aligned,
)
from sgrec_torchrec.a2po.missed_so_far import MissedSoFar
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint, read_extra
from sgrec_torchrec.distributed.termination import TerminatedError
from sgrec_torchrec.evaluation.offline import validation_ndcg
from sgrec_torchrec.files.content_key import folder_key
from sgrec_torchrec.files.run_folder import BEST, CHECKPOINTS
from sgrec_torchrec.reward_table import build_reward_table


class InterruptedRunError(Exception):
    """What a test raises in place of a crash."""


def test_resumed_run_equals_the_one_in_one_go(
    finished, trial, finished_ranker, table, monkeypatch
) -> None:
    real, calls = validation_ndcg(finished_ranker), []

    def crash() -> float:
        calls.append(0)
        if len(calls) == 3:  # after step 8; the newest checkpoint is of step 5
            raise InterruptedRunError
        return real()

    broken = trial(table=str(table))
    with pytest.raises(InterruptedRunError):
        broken.run(crash)
    assert broken.steps_saved(CHECKPOINTS) == [5]
    assert len(broken.figures("loss")) == 8
    steps: list[int] = []
    step_of = loop._step

    def spy(aligner, prompt_B, step: int, sample):
        steps.append(step)
        return step_of(aligner, prompt_B, step, sample)

    monkeypatch.setattr(loop, "_step", spy)
    resumed = trial(table=str(table))
    state = resumed.run(real, resume=True)
    assert steps == list(range(5, 12))
    assert state == finished.state
    assert not resumed.moved_since(finished.end)
    expected, got = (
        [(line.step, line.stage, line.values) for line in one.metrics()]
        for one in (finished, resumed)
    )
    assert got == expected
    kept, kept_again = (
        pq.read_table(one.aligner.folder / "advantages-00000.parquet")
        for one in (finished, resumed)
    )
    assert len(kept) > 0
    assert kept_again.equals(kept)
    assert_missed_the_same(resumed, finished)


def assert_missed_the_same(one, other) -> None:
    """All that either asked the table for in vain, in the same order."""
    logs = [made.aligner.semantic.misses for made in (one, other)]
    numbers = [(log.num_asked, log.num_missing, log.num_dropped) for log in logs]
    assert numbers[0] == numbers[1]
    files = [
        pq.read_table(made.aligner.folder / "misses-00000.parquet")
        for made in (one, other)
    ]
    assert len(files[0]) > 0
    assert files[0].equals(files[1])


def test_what_was_missed_is_told_by_who_was_killed_after_the_last_step(
    finished, trial, finished_ranker, table, monkeypatch
) -> None:
    real = validation_ndcg(finished_ranker)
    broken = trial(table=str(table))
    with monkeypatch.context() as patch:
        patch.setattr(MissedSoFar, "write", None)
        with pytest.raises(TypeError):
            broken.run(real)
    assert not list(broken.aligner.folder.glob("misses-*"))
    resumed = trial(table=str(table))
    assert resumed.run(real, resume=True) == finished.state
    assert_missed_the_same(resumed, finished)


def test_sigterm_keeps_the_step_that_was_done(
    finished, trial, finished_ranker, table, monkeypatch
) -> None:
    real = validation_ndcg(finished_ranker)
    step_of = loop._step

    def told(aligner, prompt_B, step: int, sample):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of(aligner, prompt_B, step, sample)

    broken = trial(table=str(table))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", told)
        with pytest.raises(TerminatedError) as stopped:
            broken.run(real)
    assert stopped.value.code == 143
    assert broken.steps_saved(CHECKPOINTS)[-1] == 7
    resumed = trial(table=str(table))
    assert resumed.run(real, resume=True) == finished.state
    assert not resumed.moved_since(finished.end)
    assert_missed_the_same(resumed, finished)


def test_sigterm_in_a_validation_keeps_its_step_and_validates_it_first_on_resume(
    finished, trial, finished_ranker, table
) -> None:
    real, seen = validation_ndcg(finished_ranker), []

    def told() -> float:
        seen.append(0)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real()

    broken = trial(table=str(table))
    with pytest.raises(TerminatedError):
        broken.run(told)
    assert broken.steps_saved(CHECKPOINTS)[-1] == 8
    resumed = trial(table=str(table))
    assert resumed.run(real, resume=True) == finished.state
    assert not resumed.moved_since(finished.end)
    lines = [
        [(line.step, line.values) for line in one.metrics() if line.stage == "valid"]
        for one in (finished, resumed)
    ]
    assert lines[0] == lines[1]


def test_finished_run_resumes_as_finished(finished, copied, table) -> None:
    again = copied(table=str(table))
    assert again.run([], resume=True) == finished.state
    assert not again.moved_since(finished.end)
    assert again.metrics() == finished.metrics()


def test_shipped_weights_are_read_back(finished, copied, table) -> None:
    made = copied(table=str(table))
    restore_aligned(made.aligner)
    assert not made.moved_since(finished.end)


def test_nothing_post_trained_yet_is_said_so(trial) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"these pretrained weights .*: post-train"
    ):
        restore_aligned(trial().aligner)


def test_run_goes_on_under_its_own_settings_alone(copied, table) -> None:
    other = copied(table=str(table), kl_weight=0.5)
    with pytest.raises(ValueError, match=r"align.kl_weight = 0.05, this run has 0.5"):
        other.run([], resume=True)


def test_settings_that_change_no_step_may_differ(finished, copied, table) -> None:
    other = copied(
        table=str(table), patience=9, valid_every_steps=3, keep_checkpoints=1
    )
    assert other.run([], resume=True) == finished.state


def test_what_a_killed_call_began_with_is_not_set_aside(trial) -> None:
    other = trial(num_steps=0)
    other.run([0.5])
    other.run([0.5], resume=True)
    assert not other.aligner.folder.with_name("aligned.1").exists()


def test_another_table_begins_anew(finished, copied) -> None:
    other = copied(table=None, num_steps=1)
    assert not is_current(other.aligner, BEST)
    with pytest.raises(FileNotFoundError, match="this table: post-train"):
        restore_aligned(other.aligner)
    set_aside = other.aligner.folder.with_name("aligned.1")
    state = other.run([0.1, 0.2], resume=True)
    assert state.step == 1
    assert state.made_of != finished.state.made_of
    # Who goes on loses nothing of what the other table has made.
    kept = latest_checkpoint(set_aside / BEST)
    assert kept is not None
    assert read_extra(kept)["made_of"] == finished.state.made_of
    other.run([0.1, 0.2], resume=True)
    assert not set_aside.with_suffix(".2").exists()


def test_fresh_start_removes_what_an_older_run_left(trial) -> None:
    made = trial(num_steps=1)
    for name in (BEST, CHECKPOINTS):
        (made.aligner.folder / name / "step-000000000900").mkdir(parents=True)
    made.run()
    assert made.steps_saved(BEST) == made.steps_saved(CHECKPOINTS) == [1]


def test_resume_without_a_checkpoint_starts_fresh(trial) -> None:
    made = trial(num_steps=2)
    assert made.run(resume=True).step == 2
    assert len(made.figures("loss")) == 2


def test_run_without_validation_ships_its_last_step(trial) -> None:
    made = trial(num_steps=3)
    state = made.run()
    assert (state.best_step, state.best_ndcg) == (0, -1.0)
    assert made.steps_saved(BEST) == [3]
    last = made.weights()
    again = trial()
    assert again.moved_since(last)
    restore_aligned(trial(num_steps=3).aligner)
    assert not again.moved_since(last)


def test_table_that_is_not_there_is_an_error_before_any_step(trial, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no-table"):
        trial(table=str(tmp_path / "no-table"))


def test_business_table_pays_the_rollouts_and_names_what_is_made_of_it(
    trial, finished_ranker, tmp_path
) -> None:
    split = finished_ranker.split
    users, items = split.user_ids, split.catalogue.item_ids
    price = {item: number / len(items) for number, item in enumerate(items)}
    rows = [(user, item, price[item]) for user in users for item in items]
    names = ("user_id", "item_id", "reward")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    columns["reward"] = pa.array(columns["reward"], pa.float32())
    pq.write_table(pa.table(columns), tmp_path / "priced.parquet")
    folder = tmp_path / "priced"
    build_reward_table(tmp_path / "priced.parquet", folder)
    made = trial(num_steps=1, business_table=str(folder))
    made.run()
    # Prices differ in every group, so none is dead; they are not the rank reward.
    assert made.figures("dead_share") == [0.0]
    assert 0 < made.figures("reward")[0] < 1
    assert folder_key(folder)[:16] in made.aligner.made_of
    plain = trial(num_steps=1)
    assert plain.aligner.made_of != made.aligner.made_of
    assert not is_current(plain.aligner, BEST)


def test_a_table_that_knows_nobody_is_of_another_log(trial, tmp_path) -> None:
    rows = {
        "user_id": ["nobody"],
        "item_id": ["i1"],
        "reward": pa.array([0.5], pa.float32()),
        "as_of": [2],
        "history_hash": pa.array([7], pa.uint64()),
    }
    pq.write_table(pa.table(rows), tmp_path / "other.parquet")
    build_reward_table(tmp_path / "other.parquet", tmp_path / "other")
    with pytest.raises(ValueError, match=r"other' knows none of the log's 200 users"):
        trial(table=str(tmp_path / "other"))
