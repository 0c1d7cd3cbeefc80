"""Candidates judged by many workers: cut by user, judged, moved into one folder.

    JUDGED/.parts/asked-00000/   what a part is asked (``cut``)
    JUDGED/.parts/judged-00000/  a judged folder of its own, which survives its worker
    JUDGED/.parts/done-00000/    that it is whole

A call begins by moving in what an earlier one has judged, so whole users are never
judged twice, however often, and with however many workers, one starts again.

Scale: a worker holds the log, the model and one part; this process holds ids of the
users, 100 bytes each. Pairs pass through files.
"""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgrec_torchrec.distributed.executor import Executor
from sgrec_torchrec.distributed.tasks import Task
from sgrec_torchrec.files.atomic import atomic_file, sha256_file
from sgrec_torchrec.files.listed_sums import SUMS, check_listed, listed_sums, sums_of
from sgrec_torchrec.files.run_folder import (
    CANDIDATE_PAIRS,
    JUDGE_MANIFEST,
    MANIFEST,
    PARTS,
    USERS,
    nth,
    number_of,
)
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.judge.asking import Asking, open_asked
from sgrec_torchrec.judge.cut import cut_candidates, num_parts
from sgrec_torchrec.judge.journal import JOURNAL, MEND, Journal, locked, next_part
from sgrec_torchrec.judge.judge_files import JudgeFiles, open_judge
from sgrec_torchrec.judge.judge_requests import candidate_files, read_requests
from sgrec_torchrec.judge.judging import (
    COUNTS,
    WORK,
    Judge,
    earlier_facts,
    judge_requests,
    judged_schema,
    with_rates,
)

JUDGED_PART, DONE = "judged-*", "done-*"
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePart(Task):
    """Inputs: manifests of the split and of the judge, the part's users and pairs."""

    asking: Asking


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What is judged, by whom, and where to."""

    split: Path
    judge: Path
    candidates: Path
    pairs: Path | None
    """In place of those of ``candidates``."""
    out: Path


def judge_here(places: Places, asking: Asking, *, price_per_hour: float = 0.0) -> Facts:
    """``judge_requests`` in this process, after what lost workers left is moved in."""
    judge = open_asked(places.split, places.judge, asking)
    requests = read_requests(places.candidates, judge.reader, places.pairs)
    if (places.out / WORK).is_dir():
        with closing(locked(places.out)):
            _take_up(places.out, judge.files, price_per_hour)
    return judge_requests(requests, judge, places.out, price_per_hour=price_per_hour)


def judge_in_parts(
    places: Places,
    asking: Asking,
    executor: Executor,
    *,
    users_per_part: int,
    price_per_hour: float = 0.0,
) -> Facts:
    """As ``judge_requests``, the users shared out; returns the manifest.

    Args:
        price_per_hour: of a worker. Seconds in the manifest are those of all workers
            together, and pairs a second those of one.

    Raises:
        ValueError, BlockingIOError: as ``judge_requests``, ``cut`` and the executor.
    """
    files, out = open_judge(places.judge), places.out
    users, pairs = candidate_files(places.candidates, places.pairs)
    earlier_facts(out, files)
    ids = pq.read_table(users, columns=["user_id"])["user_id"].to_pylist()
    files.check_unlearned([str(user_id) for user_id in ids])
    out.mkdir(parents=True, exist_ok=True)
    _seal(out, files)
    with closing(locked(out)):
        before = _take_up(out, files, price_per_hour)["pairs"]
        count = num_parts(users, users_per_part)
        judged = sorted(out.glob(PARTS))
        asked = cut_candidates(users, pairs, judged, out / WORK, count)
        if not before and not asked:
            raise ValueError(f"{pairs} names no pair: there is nothing to judge")
        tasks = [_task(folder, places, asking) for folder in asked]
        executor.map(judge_part, tasks, description="judge")
        facts = _move_in(out, files, price_per_hour)
    facts["pairs_this_time"] = facts["pairs"] - before
    write_sealed(out / MANIFEST, facts)
    return facts


def judge_part(task: JudgePart, _folder: Path) -> Facts:
    """Judge what is asked, in a folder that stays where the worker is lost."""
    split, manifest, users, _ = task.inputs
    keys = (sha256_file(split), sha256_file(manifest))
    judge = _opened(split.parent, manifest.parent, task.asking, keys)
    requests = read_requests(users.parent, judge.reader)
    place = task.out.with_name(nth(JUDGED_PART, number_of(task.out)))
    return judge_requests(requests, judge, place)


@lru_cache(maxsize=1)
def _opened(split: Path, folder: Path, asking: Asking, _keys: tuple[str, str]) -> Judge:
    """A worker keeps its model from part to part; ``_keys`` are of what it holds."""
    return open_asked(split, folder, asking)


def _task(asked: Path, places: Places, asking: Asking) -> JudgePart:
    return JudgePart(
        out=asked.with_name(nth(DONE, number_of(asked))),
        inputs=(
            places.split / MANIFEST,
            places.judge / JUDGE_MANIFEST,
            asked / USERS,
            asked / CANDIDATE_PAIRS,
        ),
        asking=asking,
    )


def _seal(folder: Path, files: JudgeFiles) -> None:
    """Make a part of what a journal holds, which no reader but it knows."""
    path = folder / JOURNAL
    if path.is_file() and path.stat().st_size:
        journal = Journal(folder, judged_schema(files.aspects))
        try:
            journal.seal()
        finally:
            journal.close()


def _take_up(out: Path, files: JudgeFiles, price_per_hour: float) -> Facts:
    """``_move_in`` of what an earlier call left, once its folder is found whole."""
    check_listed([*out.glob(PARTS), out / USERS], MEND)
    return _move_in(out, files, price_per_hour)


def _move_in(out: Path, files: JudgeFiles, price_per_hour: float) -> Facts:
    """What the parts have judged becomes the folder's; they are gone after that.

    Killed at any point, the next call moves in what is left. Figures of a call that was
    killed may be lost or count twice; pairs and users are those of the files.

    Returns:
        The manifest; but for its pairs empty where nothing was ever judged.
    """
    parts = sorted((out / WORK).glob(JUDGED_PART))
    known = [was for one in (out, *parts) if (was := earlier_facts(one, files))]
    sums = listed_sums(out, MEND)
    for folder in parts:
        _seal(folder, files)
        with closing(locked(folder)):
            check_listed(folder.glob(PARTS), MEND)
            _move_parts(folder, out)
    facts: Facts = {"pairs": 0}
    if known:
        _merge_users(out / USERS, [folder / USERS for folder in parts])
        new = [path for path in out.glob(PARTS) if path.name not in sums]
        sums |= sums_of([*new, out / USERS])
        facts = with_rates(_merged(known, sums, out), price_per_hour)
        write_sealed(out / MANIFEST, facts)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return facts


def _move_parts(folder: Path, out: Path) -> None:
    for number, path in enumerate(sorted(folder.glob(PARTS)), next_part(out)):
        path.rename(out / nth(PARTS, number))


def _merge_users(path: Path, new: Iterable[Path]) -> None:
    """What prompts showed of each user, as of the last time that they were asked."""
    files = [one for one in new if one.is_file()]
    if not files:
        return
    asked = pa.concat_tables(pq.read_table(one, columns=["user_id"]) for one in files)
    schema = pq.read_schema(files[0])
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in pq.ParquetFile(path).iter_batches() if path.is_file() else ():
            is_new = pc.is_in(batch["user_id"], value_set=asked["user_id"])
            writer.write_batch(batch.filter(pc.invert(is_new)))
        for one in files:
            for batch in pq.ParquetFile(one).iter_batches():
                writer.write_batch(batch)


def _merged(known: Sequence[Facts], sums: dict[str, str], out: Path) -> Facts:
    """One manifest of several of one judge: totals add, what is in files is counted."""
    totals = {
        name: sum(facts.get(name) or 0 for facts in known)
        for name in (*COUNTS, "seconds")
    }
    parts = [str(path) for path in sorted(out.glob(PARTS))]
    pairs, users = 0, 0
    if parts:
        with duckdb.connect() as engine:
            counted = engine.execute(
                "SELECT count(*), count(DISTINCT user_id) FROM read_parquet($1)",
                [parts],
            ).fetchone()
        assert counted is not None
        pairs, users = counted
    return {**known[-1], **totals, "pairs": pairs, "users": users, SUMS: sums}
