"""Processes that are killed, stopped, resharded: a run ends as if nothing had been."""

import math
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults.field import NAME, Field, align_words, figures, losses, remove
from faults.outcome import FaultRow, part, run_trials
from faults.processes import LIMIT_S, Ended, Started, start_ranks
from sgrec_torchrec.files.run_folder import CHECKPOINTS

POLL_S = 0.005
MAX_KILLS = 2
NUM_CORES = len(os.sched_getaffinity(0))
NUM_STOPPED_AT_ONCE = 5
HEARTBEAT_S = 60.0
"""Within which the others end."""


def kill_rows(field: Field, share: float, seed: int) -> Iterator[FaultRow]:
    """The rows of this module, one after another; each row's trials side by side."""
    draw = random.Random(seed)

    def row(
        name: str,
        asked: int,
        trial: Callable[[Field, Path, random.Random], str | None],
        num_at_once: int = NUM_CORES,
    ) -> FaultRow:
        seeds = [draw.randrange(1 << 30) for _ in range(part(asked, share))]
        with ThreadPoolExecutor(num_at_once) as pool:
            said = pool.map(
                lambda seed: in_folder(trial, field, random.Random(seed)), seeds
            )
            return run_trials(name, asked, said)

    yield row("kill -9 at a random step, 1 rank", 18, _killed_on(1))
    yield row("kill -9 at a random step, 2 ranks", 10, _killed_on(2))
    yield row("kill -9 in post-training", 12, _killed_in_post_training)
    yield row("kill -9 in preparation", 10, _killed_in_preparation)
    yield row("kill -9 during a save", 100, _killed_in_a_save)
    yield row("one of two ranks killed", 20, _lost_a_rank)
    # What is stopped is waited for, most of a minute, and costs nothing meanwhile.
    yield row(
        "one of two ranks stopped (SIGSTOP)", 10, _stopped_a_rank, NUM_STOPPED_AT_ONCE
    )
    yield row("resumed on 1, 2 and 4 ranks", 12, _resharded)


def _killed_on(num_ranks: int) -> Callable[[Field, Path, random.Random], str | None]:
    def trial(field: Field, runs: Path, draw: random.Random) -> str | None:
        field.copy_runs(runs, prepared_only=True)
        last = losses(field.runs(num_ranks) / NAME, "pretrain")[-1][0]
        words = field.train(runs)
        for _ in range(draw.randint(1, MAX_KILLS)):
            ranks = start_ranks(words, num_ranks)
            _await_step(ranks, runs / NAME, "pretrain", draw.randint(0, last))
            _kill(ranks)
            words = field.train(runs, "--resume")
        return _ends_as(
            words, num_ranks, runs, field.runs(num_ranks), stages=("pretrain",)
        )

    return trial


def _killed_in_post_training(
    field: Field, runs: Path, draw: random.Random
) -> str | None:
    field.copy_runs(runs, prepared_only=False)
    last = losses(field.root / "aligned" / NAME, "align")[-1][0]
    words = [*field.train(runs), *align_words()]
    for _ in range(draw.randint(1, MAX_KILLS)):
        ranks = start_ranks(words, 1)
        _await_step(ranks, runs / NAME, "align", draw.randint(0, last))
        _kill(ranks)
    return _ends_as(
        words, 1, runs, field.root / "aligned", stages=("pretrain", "align")
    )


def _killed_in_preparation(field: Field, runs: Path, draw: random.Random) -> str | None:
    words = field.train(runs)
    for _ in range(draw.randint(1, MAX_KILLS)):
        ranks = start_ranks(words, 1)
        time.sleep(draw.uniform(0, 4.0))
        _kill(ranks)
    return _ends_as(words, 1, runs, field.runs(), stages=("pretrain",))


def _killed_in_a_save(field: Field, runs: Path, draw: random.Random) -> str | None:
    """At a moment of one of the saves; a save is seen by its temporary folder."""
    field.copy_runs(runs, prepared_only=True)
    ranks = start_ranks(field.train(runs), 1)
    for _ in range(draw.randint(1, 6)):
        if not _await(ranks, lambda: _is_saving(runs / NAME / CHECKPOINTS)):
            break
        if not _await(ranks, lambda: not _is_saving(runs / NAME / CHECKPOINTS)):
            break
    if _await(ranks, lambda: _is_saving(runs / NAME / CHECKPOINTS)):
        time.sleep(draw.uniform(0, 0.02))
    _kill(ranks)
    words = field.train(runs, "--resume")
    return _ends_as(words, 1, runs, field.runs(), stages=("pretrain",))


def _lost_a_rank(field: Field, runs: Path, draw: random.Random) -> str | None:
    return _harm_a_rank(field, runs, draw, signal.SIGKILL, is_named=False)


def _stopped_a_rank(field: Field, runs: Path, draw: random.Random) -> str | None:
    return _harm_a_rank(field, runs, draw, signal.SIGSTOP, is_named=True)


def _harm_a_rank(
    field: Field, runs: Path, draw: random.Random, number: int, *, is_named: bool
) -> str | None:
    """The other one ends in time, and says which; then both go on as before."""
    field.copy_runs(runs, prepared_only=True)
    last = losses(field.runs(2) / NAME, "pretrain")[-1][0]
    ranks = start_ranks(field.train(runs), 2)
    _await_step(ranks, runs / NAME, "pretrain", draw.randint(1, last - 10))
    which = draw.randrange(2)
    ranks[which].kill(number)
    begin = time.monotonic()
    other = ranks[1 - which].wait(LIMIT_S)
    waited = time.monotonic() - begin
    _kill([ranks[which]])
    if waited > HEARTBEAT_S:
        return f"the other rank ended after {waited:.0f} s: {other.last_line}"
    if other.code == 0:
        return "the other rank ended as if all were well"
    if is_named and f"rank {which}" not in other.said:
        return f"rank {which} is not named: {other.last_line}"
    words = field.train(runs, "--resume")
    return _ends_as(words, 2, runs, field.runs(2), stages=("pretrain",))


def _resharded(field: Field, runs: Path, draw: random.Random) -> str | None:
    """Killed on some number of ranks, resumed on another, ended on a third."""
    field.copy_runs(runs, prepared_only=True)
    last = losses(field.runs() / NAME, "pretrain")[-1][0]
    sizes = draw.sample((1, 2, 4), 3)
    words = field.train(runs)
    for size, share in zip(sizes[:2], (0.3, 0.6), strict=True):
        ranks = start_ranks(words, size)
        _await_step(ranks, runs / NAME, "pretrain", int(share * last))
        _kill(ranks)
        words = field.train(runs, "--resume")
    return _ends_as(
        words, sizes[2], runs, field.runs(), stages=("pretrain",), tolerance=1e-4
    )


def _ends_as(
    words: Sequence[str],
    num_ranks: int,
    runs: Path,
    whole: Path,
    *,
    stages: Sequence[str],
    tolerance: float = 0.0,
) -> str | None:
    """Run to the end: losses and figures of the run that nobody touched?"""
    for ended in [rank.wait(LIMIT_S) for rank in start_ranks(words, num_ranks)]:
        if ended.code != 0:
            return _described(ended)
    for stage in stages:
        got, expected = (losses(one / NAME, stage) for one in (runs, whole))
        if [step for step, _ in got] != [step for step, _ in expected]:
            return f"{stage}: {len(got)} steps, {len(expected)} uninterrupted"
        for (step, ours), (_, theirs) in zip(got, expected, strict=True):
            if not math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=0.0):
                return f"{stage}, step {step}: loss {ours}, {theirs} uninterrupted"
    if not tolerance and figures(runs / NAME) != figures(whole / NAME):
        return "other figures than the uninterrupted run's"
    return None


def _described(ended: Ended) -> str:
    return ended.fault or f"exit code {ended.code}: {ended.last_line}"


def in_folder(
    trial: Callable[[Field, Path, random.Random], str | None],
    field: Field,
    draw: random.Random,
) -> str | None:
    folder = Path(tempfile.mkdtemp(dir=field.root))
    try:
        return trial(field, folder / "runs", draw)
    finally:
        remove(folder)


def _await_step(ranks: Sequence[Started], run_dir: Path, stage: str, step: int) -> bool:
    """Until the loop has come to a step; False where the ranks ended before."""
    return _await(
        ranks, lambda: any(at >= step for at, _ in losses(run_dir, stage)[-1:])
    )


def _await(ranks: Sequence[Started], is_there: Callable[[], bool]) -> bool:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if is_there():
            return True
        if not all(rank.process.is_alive() for rank in ranks):
            return False
        time.sleep(POLL_S)
    return False


def _is_saving(checkpoints: Path) -> bool:
    return any(checkpoints.glob(".step-*.tmp"))


def _kill(ranks: Sequence[Started]) -> None:
    """All at once, and until they are gone."""
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.process.join()
