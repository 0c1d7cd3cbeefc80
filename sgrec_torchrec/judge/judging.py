"""Requests -> judged pairs: scores by Part A, weights by Part B, the reward.

    JUDGED/part-*.parquet   user_id, item_id, source, aspect_<name>, evidence_<name>,
                            weight_<name>, reward, as_of, history_hash, judge_version,
                            prompt_version
    JUDGED/users.parquet    what each prompt showed: for the inspection page
    JUDGED/manifest.json    what it was made by, and what it cost

``sgrec table build`` takes the folder as it is.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgrec_torchrec.distributed.progress import progress_of
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.listed_sums import SUMS, check_listed, sums_of
from sgrec_torchrec.files.run_folder import JUDGE_PAGE, MANIFEST, PARTS, USERS
from sgrec_torchrec.files.sealed_json import Fields, read_sealed, write_sealed
from sgrec_torchrec.judge.ask.aspects import (
    LEVELS,
    WrittenAnswer,
    answer_schema,
    expected_score,
    read_answer,
)
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.prompt import rating, writing
from sgrec_torchrec.judge.backends.protocol import Backend, Usage
from sgrec_torchrec.judge.journal import JOURNAL, LOCK, Journal, Row, other_history
from sgrec_torchrec.judge.judge_files import JudgeFiles
from sgrec_torchrec.judge.judge_requests import Request
from sgrec_torchrec.schema import Float32Array

FORMAT_VERSION = 2
WORK = ".parts"
"""Folder of a judged folder: what is judged in parts, until all is."""
USERS_AT_ONCE = 8
MAX_WRITTEN_TOKENS = 320
TOKENS = ("prompt_tokens", "cached_tokens", "written_tokens")
COUNTS = (*TOKENS, "unanswered", "written_asked", "written_refused")
EARLIER: Fields = {
    "seconds": (float, int, NoneType),
    **dict.fromkeys(COUNTS, (int, NoneType)),
}
"""What a call takes over from the manifest of those before it."""
Weigh = Callable[[Sequence[Case]], Float32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Everything that turns a request into rewards."""

    files: JudgeFiles
    backend: Backend
    reader: CaseReader
    weigh: Weigh
    """Cases -> float32 [len, A] weights, rows sum to 1."""
    num_written: int
    """Of a user's candidates, so many of the best get sentences of evidence."""


def judge_requests(
    requests: Iterable[Request], judge: Judge, out: Path, *, price_per_hour: float = 0.0
) -> dict[str, Any]:
    """Judge what is not judged yet; returns the manifest.

    Killed at any point, the next call goes on after the last whole user.

    Args:
        price_per_hour: of the machine, for the cost of a pair; any currency.

    Raises:
        ValueError: where ``out`` holds the judgements of another judge or prompt, or
            where the judge has learned from a user whom it is to judge.
    """
    earlier = earlier_facts(out, judge.files)
    for name in TOKENS:  # a backend counts on from call to call
        earlier[name] = earlier.get(name, 0) - getattr(judge.backend.usage, name)
    journal = Journal(out, judged_schema(judge.files.aspects))
    begin, pairs_before = time.perf_counter(), journal.num_pairs
    written = _Counts()

    def facts() -> dict[str, Any]:
        seconds = time.perf_counter() - begin
        return _facts(judge, journal, earlier, seconds, written, price_per_hour)

    try:
        asked = list(requests)
        judge.files.check_unlearned([one.user_id for one in asked])
        _check_prefixes(asked, journal)
        check_listed([out / USERS], "delete it, and judge the same candidates again")
        # Who is killed between the two leaves users of which nothing is said.
        write_sealed(out / MANIFEST, facts())
        _write_users(asked, judge.reader, out)
        journal.sums |= sums_of([out / USERS])
        left = [rest for one in asked if (rest := _not_judged(one, judge, journal))]
        write_sealed(out / MANIFEST, facts())
        total, num_left = _num_pairs(asked), _num_pairs(left)
        with progress_of(
            description="judge", total=total, done=total - num_left, unit="pair"
        ) as bar:
            for some in _chunks(left):
                for one, rows in zip(some, _judge(some, judge, written), strict=True):
                    if rows:
                        journal.add(rows)
                    bar.update(len(one.case.items))
                write_sealed(out / MANIFEST, facts())
        journal.seal()
    finally:
        journal.close()
    manifest = facts()
    manifest["pairs_this_time"] = journal.num_pairs - pairs_before
    write_sealed(out / MANIFEST, manifest)
    return manifest


def _check_prefixes(requests: Iterable[Request], journal: Journal) -> None:
    """A folder holds one prefix a user: a table takes no more."""
    for one in requests:
        if journal.history_hash.get(one.user_id, one.history_hash) != one.history_hash:
            raise other_history(journal.folder, one.user_id)


def _num_pairs(requests: Iterable[Request]) -> int:
    return sum(len(one.case.items) for one in requests)


def _not_judged(one: Request, judge: Judge, journal: Journal) -> Request | None:
    """The request without the pairs that are judged already; None where all are."""
    ids = judge.reader.split.catalogue.item_ids
    places = [
        place
        for place, item in enumerate(one.case.items)
        if not journal.has(one.user_id, ids[item])
    ]
    if len(places) == len(one.case.items):
        return one
    if not places:
        return None
    items = tuple(one.case.items[place] for place in places)
    return replace(
        one,
        case=replace(one.case, items=items),
        sources=tuple(one.sources[place] for place in places),
    )


@dataclass(slots=True)
class _Counts:
    asked: int = 0
    refused: int = 0
    """Answers that did not fit the schema: their evidence is missing."""
    unanswered: int = 0
    """Pairs that got no level: they stay missing."""


def _judge(
    requests: Sequence[Request], judge: Judge, written: _Counts
) -> Iterator[list[Row]]:
    """All pairs of each request, in order."""
    reader, aspects = judge.reader, judge.reader.aspects
    prompts = [reader.prompt(one.case, rating(aspects)) for one in requests]
    probabilities = judge.backend.rate(prompts, LEVELS)
    weights = judge.weigh([one.case for one in requests])
    for one, said_CAS, weight_A in zip(requests, probabilities, weights, strict=True):
        score_CA = expected_score(said_CAS)
        reward_C = score_CA @ weight_A
        evidence = _evidence(one, np.argsort(-reward_C).tolist(), judge, written)
        ids = reader.split.catalogue.item_ids
        rows = []
        for place, item in enumerate(one.case.items):
            if np.isnan(reward_C[place]):
                written.unanswered += 1
                continue
            row: Row = {
                "user_id": one.user_id,
                "item_id": ids[item],
                "source": one.sources[place],
                "reward": float(reward_C[place]),
                "as_of": one.case.as_of,
                "history_hash": one.history_hash,
                "judge_version": judge.files.judge_version,
                "prompt_version": judge.files.prompt_version,
            }
            answer = evidence.get(place)
            for nth, aspect in enumerate(aspects):
                row[f"aspect_{aspect.name}"] = float(score_CA[place, nth])
                row[f"weight_{aspect.name}"] = float(weight_A[nth])
                row[f"evidence_{aspect.name}"] = answer and answer.evidence[nth]
            rows.append(row)
        yield rows


def _evidence(
    one: Request,
    best_first: Sequence[int],
    judge: Judge,
    written: _Counts,
) -> dict[int, WrittenAnswer]:
    """Sentences for the best candidates; an answer off the schema is counted."""
    places = [int(place) for place in best_first[: judge.num_written]]
    if not places:
        return {}
    aspects = judge.reader.aspects
    some = replace(one.case, items=tuple(one.case.items[place] for place in places))
    prompt = judge.reader.prompt(some, writing(aspects))
    (texts,) = judge.backend.write([prompt], answer_schema(aspects), MAX_WRITTEN_TOKENS)
    found = {}
    for place, text in zip(places, texts, strict=True):
        written.asked += 1
        try:
            found[place] = read_answer(text, aspects)
        except ValueError:
            written.refused += 1
    return found


def earlier_facts(out: Path, files: JudgeFiles) -> dict[str, Any]:
    """The manifest of earlier calls on the same folder; empty where there were none.

    Raises:
        ValueError: where the folder holds something else, or another judge's work.
    """
    path = out / MANIFEST
    parts = {part.name for part in out.glob(PARTS)}
    if not parts or not path.is_file():
        known = {JOURNAL, LOCK, WORK, USERS, JUDGE_PAGE, MANIFEST, *parts}
        # Who was killed in its first write has left what was not renamed yet.
        named = {one.name for one in out.glob("*") if not one.match(".*.tmp")}
        if strangers := named - known:
            raise ValueError(
                f"{out} holds {min(strangers)!r} and no judgements: name a new folder"
            )
    if not path.is_file():
        return {}
    facts = read_sealed(
        path,
        EARLIER,
        format_version=FORMAT_VERSION,
        mend="judge into another folder (--out)",
    )
    for name in ("judge_version", "prompt_version"):
        if facts.get(name) != getattr(files, name):
            raise ValueError(
                f"{out} holds judgements of {name} {facts.get(name)}, this judge is "
                f"{getattr(files, name)}: write to another folder"
            )
    return facts


def _facts(
    judge: Judge,
    journal: Journal,
    earlier: dict[str, Any],
    seconds: float,
    written: _Counts,
    price_per_hour: float,
) -> dict[str, Any]:
    usage: Usage = judge.backend.usage
    counts = getattr(judge.backend, "counts", None)
    server = {} if counts is None else {"server": asdict(counts)}
    return with_rates(
        {
            **server,
            "format_version": FORMAT_VERSION,
            "backend": judge.backend.name,
            "model": judge.backend.model,
            "judge_version": judge.files.judge_version,
            "prompt_version": judge.files.prompt_version,
            "aspects": list(judge.files.aspects),
            "has_context": judge.reader.has_clock,
            "users": len(journal.done),
            "pairs": journal.num_pairs,
            "seconds": round(seconds + earlier.get("seconds", 0.0), 6),
            **{name: getattr(usage, name) + earlier.get(name, 0) for name in TOKENS},
            "unanswered": written.unanswered + earlier.get("unanswered", 0),
            "written_asked": written.asked + earlier.get("written_asked", 0),
            "written_refused": written.refused + earlier.get("written_refused", 0),
            SUMS: journal.sums,
        },
        price_per_hour,
    )


def with_rates(facts: dict[str, Any], price_per_hour: float) -> dict[str, Any]:
    """A manifest's totals, and what follows from them for a pair."""
    pairs, seconds = facts["pairs"], facts["seconds"]
    return {
        **facts,
        "pairs_per_second": round(pairs / seconds, 3) if seconds else 0.0,
        "cached_share": round(
            facts["cached_tokens"] / max(facts["prompt_tokens"], 1), 4
        ),
        "seconds_per_pair": round(seconds / pairs, 8) if pairs else None,
        "cost_per_pair": price_per_hour * seconds / 3600 / pairs if pairs else None,
    }


def judged_schema(aspects: Sequence[str]) -> pa.Schema:
    """Of the parts."""
    columns: dict[str, pa.DataType] = dict.fromkeys(
        ("user_id", "item_id", "source"), pa.string()
    )
    columns |= {f"aspect_{name}": pa.float32() for name in aspects}
    columns |= {f"evidence_{name}": pa.string() for name in aspects}
    columns |= {f"weight_{name}": pa.float32() for name in aspects}
    columns |= {"reward": pa.float32(), "as_of": pa.int64()}
    columns |= {"history_hash": pa.int64()}
    columns |= {"judge_version": pa.string(), "prompt_version": pa.string()}
    return pa.schema(columns)


def _write_users(requests: Sequence[Request], reader: CaseReader, out: Path) -> None:
    shown = reader.settings.max_history
    table = pa.table(
        {
            "user_id": [one.user_id for one in requests],
            "as_of": pa.array([one.case.as_of for one in requests], pa.int32()),
            "request_timestamp": pa.array(
                [
                    one.case.request_timestamp if reader.has_clock else None
                    for one in requests
                ],
                pa.int64(),
            ),
            "history": pa.array(
                [reader.history_ids(one.case)[-shown:] for one in requests],
                pa.list_(pa.string()),
            ),
            "next_item_id": pa.array(
                [one.next_item_id for one in requests], pa.string()
            ),
        }
    )
    path = out / USERS
    if path.is_file():
        earlier = pq.read_table(path)
        is_asked = pc.is_in(earlier["user_id"], value_set=table["user_id"])
        table = pa.concat_tables([earlier.filter(pc.invert(is_asked)), table])
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def _chunks(requests: Sequence[Request]) -> Iterator[list[Request]]:
    rest = iter(requests)
    while some := list(itertools.islice(rest, USERS_AT_ONCE)):
        yield some
