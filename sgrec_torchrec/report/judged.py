"""``judged/`` and ``judge/report.json`` -> the judge's part of the report.

A few users with their best candidates, what the judge said of each, and how the judge
did on held-out labels. Text is cut to a bound; the template escapes it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from sgrec_torchrec.files.run_folder import ITEMS, JUDGE, JUDGE_REPORT, JUDGED, SPLIT
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.report.judged_folder import (
    ASPECT,
    EVIDENCE,
    REWARD,
    WEIGHT,
    JsonRow,
    find_judged,
)
from sgrec_torchrec.report.tables import Cell, Row, Table, facts

MAX_USERS = 4
MAX_CANDIDATES = 4
"""Of a user; the next item comes on top."""
MAX_HISTORY = 6
MAX_READ_ROWS = 20_000
"""Examples are taken from the first so many pairs."""
MAX_CHARS = 240
STAGES = ("before", "sft", "grpo", "grpo + weights")
"""Of the judge's training, in order."""
SHOWN_FACTS = (
    *("users", "pairs", "seconds", "pairs_per_second", "cached_share", "unanswered"),
    *("written_asked", "written_refused", "backend", "judge_version"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One aspect of one candidate: score and weight in percent, and why."""

    aspect: str
    score_percent: float
    score: str
    weight: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedItem:
    """One candidate as the judge saw it."""

    title: str
    source: str
    is_next: bool
    reward: str
    said: list[Said]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedUser:
    """One user with some of the candidates, the best first."""

    user_id: str
    history: list[str]
    items: list[JudgedItem]
    num_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSection:
    """All that the report says of the judge."""

    facts: list[tuple[str, str]]
    stages: Table | None
    users: list[JudgedUser]


def read_judged(run_dir: Path) -> JudgeSection | None:
    """The section, or None where nothing has been judged.

    Reads ``MAX_READ_ROWS`` pairs at most, and streams the catalogue once for the titles
    that are shown.

    Raises:
        ValueError: naming a file that is not what the judge writes.
    """
    folder = find_judged(run_dir / JUDGED)
    if folder is None:
        return None
    # A part without a column ends in either of the two.
    with folder.reading(KeyError, TypeError):
        chosen = _chosen(folder.first_pairs(MAX_READ_ROWS))
        shown_ids = [str(rows[0]["user_id"]) for rows in chosen]
        histories = folder.histories(shown_ids, MAX_HISTORY)
        named = {row["item_id"] for rows in chosen for row in rows}
        named |= {item for items in histories.values() for item in items}
        titles = _titles(run_dir / SPLIT / ITEMS, named)
        users = [_user(rows, histories, titles) for rows in chosen]
    manifest = folder.manifest() or {}
    shown = {name: manifest[name] for name in SHOWN_FACTS if name in manifest}
    return JudgeSection(
        facts=facts(shown),
        stages=_stages(run_dir / JUDGE / JUDGE_REPORT),
        users=users,
    )


def _chosen(rows: Iterator[JsonRow]) -> list[list[JsonRow]]:
    """Users with the most evidence first; of each the best candidates and the next."""
    by_user: dict[str, list[JsonRow]] = {}
    for row in rows:
        by_user.setdefault(str(row["user_id"]), []).append(row)
    ranked = sorted(by_user.values(), key=lambda some: -sum(map(_num_written, some)))
    chosen = []
    for some in ranked[:MAX_USERS]:
        some.sort(key=lambda row: (-row[REWARD], str(row["item_id"])))
        best = some[:MAX_CANDIDATES]
        best += [row for row in some[MAX_CANDIDATES:] if row["source"] == "next"][:1]
        chosen.append([{**row, "num_pairs": len(some)} for row in best])
    return chosen


def _num_written(row: JsonRow) -> int:
    return sum(bool(row[name]) for name in row if name.startswith(EVIDENCE))


def _titles(path: Path, wanted: set[str]) -> dict[str, str]:
    """Title by item id, of the wanted items; a batch of the catalogue in memory."""
    if not path.is_file():
        return {}
    catalogue = ds.dataset(path, format="parquet")
    names = pa.array(sorted(wanted), pa.string())
    is_wanted = pc.field("item_id").cast(pa.string()).isin(names)
    table = catalogue.to_table(columns=["item_id", "title"], filter=is_wanted)
    ids, titles = (table[name].to_pylist() for name in ("item_id", "title"))
    return {str(item): str(title) for item, title in zip(ids, titles, strict=True)}


def _user(
    rows: Sequence[JsonRow],
    histories: Mapping[str, list[str]],
    titles: Mapping[str, str],
) -> JudgedUser:
    user_id = str(rows[0]["user_id"])
    return JudgedUser(
        user_id=_cut(user_id),
        history=[_title(item, titles) for item in histories.get(user_id, [])],
        items=[_item(row, titles) for row in rows],
        num_pairs=rows[0]["num_pairs"],
    )


def _item(row: JsonRow, titles: Mapping[str, str]) -> JudgedItem:
    names = [name.removeprefix(ASPECT) for name in row if name.startswith(ASPECT)]
    said = [
        Said(
            aspect=name.replace("_", " "),
            score_percent=round(100 * min(max(row[ASPECT + name], 0.0), 1.0), 1),
            score=f"{row[ASPECT + name]:.2f}",
            weight=f"{row[WEIGHT + name]:.2f}",
            evidence=_cut(row.get(EVIDENCE + name) or ""),
        )
        for name in names
    ]
    source = str(row["source"])
    return JudgedItem(
        title=_title(str(row["item_id"]), titles),
        source=_cut(source.replace("_", " ")),
        is_next=source == "next",
        reward=f"{row[REWARD]:.3f}",
        said=said,
    )


def _title(item: str, titles: Mapping[str, str]) -> str:
    return _cut(titles.get(item) or item)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."


def _stages(path: Path) -> Table | None:
    """What each stage of training brought on held-out labels."""
    if not path.is_file():
        return None
    try:
        report = without_seal(json.loads(path.read_text(encoding="utf-8")))
        stages = report["stages"]
        rows = [_stage(name, stages[name]) for name in STAGES if name in stages]
        rows += [
            Row(
                label=f"rival: {name}",
                is_ours=False,
                cells=[Cell(text=""), Cell(text=_auc(one))],
            )
            for name, one in report["baselines"].items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); train "
            "the judge again"
        ) from error
    columns = ["Levels right", "Pairs in the right order"]
    return Table(
        title="The judge on held-out labels",
        columns=columns,
        rows=rows,
        corner="After",
    )


def _stage(name: str, one: Mapping[str, Any]) -> Row:
    ends = [f"{end:.3f}" if end is not None else "" for end in one["pair_auc_interval"]]
    cells = [
        Cell(text=f"{100 * one['point_accuracy']:.1f} %"),
        Cell(text=_auc(one), low=ends[0], high=ends[1]),
    ]
    return Row(label=name, is_ours=name == "grpo + weights", cells=cells)


def _auc(one: Mapping[str, Any]) -> str:
    auc = one["pair_auc"]["all"]
    return "" if auc is None else f"{auc:.3f}"
