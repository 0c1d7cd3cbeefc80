"""Labels that the judge learns from: records, Parquet files, agreement.

    points.parquet   user_id, as_of, request_timestamp, item_id, source, is_held_out,
                     level_<aspect> int8 [, evidence_<aspect>]
    pairs.parquet    user_id, as_of, preferred_item_id, other_item_id

Beside them lies what holds their sums. Users bring the same two files, and no sums;
``as_of`` counts the user's events before the request.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.checked_parquet import read_checked
from sgrec_torchrec.files.listed_sums import SUMS, check_listed, sums_of
from sgrec_torchrec.files.run_folder import MANIFEST
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.files.text_column import places_of
from sgrec_torchrec.hashing import FOLD, hash64, uniform
from sgrec_torchrec.judge.ask.aspects import LEVELS, WrittenAnswer
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.logs.judged_users import id_hash

CHOSEN = ("next", "chosen")
"""Sources of candidates that the user did choose."""
HELD_OUT_SHARE = 0.3
"""Of the label users: the judge is measured on them and learns nothing of them."""
POINTS, PAIRS = "points.parquet", "pairs.parquet"
MEND = (
    "make labels again by `sgrec judge label RUN`; where you changed them yourself, "
    f"delete {MANIFEST} beside them"
)
Int8Array = npt.NDArray[np.int8]
Row = dict[str, Any]
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Preference:
    """Places in ``Case.items``: the user prefers ``better`` to ``worse``."""

    better: int
    worse: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """A case with what the judge should have said of it."""

    case: Case
    sources: tuple[str, ...]
    levels_CA: Int8Array
    """1 to 5 by candidate and aspect."""
    evidence: tuple[tuple[str, ...], ...]
    """By candidate and aspect; empty sentences where there is none."""
    preferences: tuple[Preference, ...]
    is_held_out: bool
    """Of a user that the judge is measured on and learns nothing of."""

    def answer(self, place: int) -> WrittenAnswer:
        """The written answer for one candidate."""
        levels = tuple(int(level) for level in self.levels_CA[place])
        return WrittenAnswer(levels=levels, evidence=self.evidence[place])


def write_labels(
    cases: Sequence[LabelledCase], reader: CaseReader, folder: Path
) -> None:
    """Both files and their sums, all or none.

    Raises:
        ValueError: where the folder holds anything else, which would be lost.
    """
    if folder.is_dir():
        known = {POINTS, PAIRS, MANIFEST}
        strangers = {one.name for one in folder.iterdir()} - known
        if strangers:
            raise ValueError(
                f"{folder} holds {min(strangers)!r}, which would be lost: name a new "
                "folder"
            )
    with atomic_folder(folder) as temporary:
        points = pa.Table.from_pylist(list(_points(cases, reader)))
        pq.write_table(points, temporary / POINTS)
        pairs = list(_pairs(cases, reader))
        columns: dict[str, pa.DataType] = {"user_id": pa.string(), "as_of": pa.int32()}
        columns |= dict.fromkeys(("preferred_item_id", "other_item_id"), pa.string())
        pq.write_table(
            pa.Table.from_pylist(pairs, pa.schema(columns)), temporary / PAIRS
        )
        sums = sums_of([temporary / POINTS, temporary / PAIRS])
        write_sealed(temporary / MANIFEST, {SUMS: sums})


def _points(
    cases: Sequence[LabelledCase], reader: CaseReader
) -> Iterator[dict[str, Any]]:
    ids = reader.split.catalogue.item_ids
    for one in cases:
        for place, item in enumerate(one.case.items):
            row = {
                "user_id": reader.split.user_ids[one.case.user],
                "as_of": one.case.as_of,
                "request_timestamp": one.case.request_timestamp,
                "item_id": ids[item],
                "source": one.sources[place],
                "is_held_out": one.is_held_out,
            }
            for nth, aspect in enumerate(reader.aspects):
                row[f"level_{aspect.name}"] = int(one.levels_CA[place, nth])
                row[f"evidence_{aspect.name}"] = one.evidence[place][nth]
            yield row


def _pairs(
    cases: Sequence[LabelledCase], reader: CaseReader
) -> Iterator[dict[str, Any]]:
    ids = reader.split.catalogue.item_ids
    for one in cases:
        for preference in one.preferences:
            yield {
                "user_id": reader.split.user_ids[one.case.user],
                "as_of": one.case.as_of,
                "preferred_item_id": ids[one.case.items[preference.better]],
                "other_item_id": ids[one.case.items[preference.worse]],
            }


def read_labels(folder: Path, reader: CaseReader) -> list[LabelledCase]:
    """What ``write_labels`` wrote, or what users bring in its place.

    ``source``, ``is_held_out`` (else a seeded share of users), ``request_timestamp``
    (else that of the user's next event) and evidence may be absent; so may the pairs.

    Raises:
        FileNotFoundError: where there are no point-wise labels.
        DamagedError: naming a file that is not as it was written.
        ValueError: naming file, row and column of the first value that does not fit.
    """
    points, pairs = folder / POINTS, folder / PAIRS
    if not points.is_file():
        raise FileNotFoundError(
            f"{points} is missing: make labels by `sgrec judge label RUN`"
        )
    check_listed([points, pairs], MEND)
    rows = _rows(points, ("user_id", "as_of", "item_id"), _level_names(reader))
    split = reader.split
    items = places_of(split.catalogue.item_ids, (str(row["item_id"]) for row in rows))
    users = places_of(split.user_ids, (str(row["user_id"]) for row in rows))
    grouped: dict[Key, list[Row]] = {}
    for place, row in enumerate(rows):
        _check_point(points, place, row, reader, users, items)
        group = grouped.setdefault((str(row["user_id"]), int(row["as_of"])), [])
        if any(row["item_id"] == other["item_id"] for other in group):
            raise ValueError(
                f"{points}, row {place}: user {row['user_id']!r} at as_of "
                f"{row['as_of']} has {row['item_id']!r} twice"
            )
        group.append(row)
    preferred = _preferences(pairs, grouped)
    return [
        _case(key, group, preferred.get(key, ()), reader, users, items, 0)
        for key, group in grouped.items()
    ]


def _level_names(reader: CaseReader) -> tuple[str, ...]:
    return tuple(f"level_{aspect.name}" for aspect in reader.aspects)


def _check_point(
    path: Path,
    place: int,
    row: Row,
    reader: CaseReader,
    users: dict[str, int],
    items: dict[str, int],
) -> None:
    where = f"{path}, row {place}"
    user = users.get(str(row["user_id"]))
    if user is None:
        raise ValueError(f"{where}: user_id {row['user_id']!r} is not in the log")
    if str(row["item_id"]) not in items:
        raise ValueError(f"{where}: item_id {row['item_id']!r} is not in the catalogue")
    end = int(reader.split.sequences.train_end_U[user])
    if not isinstance(row["as_of"], int) or not 0 < row["as_of"] <= end:
        raise ValueError(
            f"{where}: as_of {row['as_of']!r} is not from 1 to {end}, the events of "
            "this user's train period"
        )
    for name in _level_names(reader):
        if row[name] not in range(1, len(LEVELS) + 1):
            raise ValueError(
                f"{where}: {name} {row[name]!r} is not a level from 1 to {len(LEVELS)}"
            )


def _preferences(
    path: Path, grouped: dict[Key, list[Row]]
) -> dict[Key, tuple[Preference, ...]]:
    if not path.is_file():
        return {}
    columns = ("user_id", "as_of", "preferred_item_id", "other_item_id")
    found: dict[Key, list[Preference]] = {}
    for place, row in enumerate(_rows(path, columns, ())):
        if not isinstance(row["as_of"], int):
            raise ValueError(
                f"{path}, row {place}: as_of {row['as_of']!r} is no number of events"
            )
        key = (str(row["user_id"]), row["as_of"])
        ids = [str(one["item_id"]) for one in grouped.get(key, [])]
        ends = [str(row["preferred_item_id"]), str(row["other_item_id"])]
        lacking = [one for one in ends if one not in ids]
        if lacking:
            raise ValueError(
                f"{path}, row {place}: {lacking[0]!r} has no levels for user "
                f"{key[0]!r} at as_of {key[1]}: add it to the point-wise labels"
            )
        preference = Preference(better=ids.index(ends[0]), worse=ids.index(ends[1]))
        found.setdefault(key, []).append(preference)
    return {key: tuple(preferences) for key, preferences in found.items()}


def _case(
    key: Key,
    group: list[Row],
    preferences: Iterable[Preference],
    reader: CaseReader,
    users: dict[str, int],
    items: dict[str, int],
    seed: int,
) -> LabelledCase:
    user_id, as_of = key
    user = users[user_id]
    drawn = uniform(hash64(seed, FOLD, id_hash(user_id))) < HELD_OUT_SHARE
    timestamp = group[0].get("request_timestamp")
    return LabelledCase(
        case=Case(
            user=user,
            as_of=as_of,
            request_timestamp=(
                reader.next_timestamp(user, as_of) if timestamp is None else timestamp
            ),
            items=tuple(items[str(row["item_id"])] for row in group),
        ),
        sources=tuple(str(row.get("source") or "labelled") for row in group),
        levels_CA=np.array(
            [[row[name] for name in _level_names(reader)] for row in group], np.int8
        ),
        evidence=tuple(
            tuple(row.get(f"evidence_{aspect.name}") or "" for aspect in reader.aspects)
            for row in group
        ),
        preferences=tuple(preferences),
        is_held_out=bool(group[0].get("is_held_out", drawn)),
    )


def _rows(path: Path, ids: tuple[str, ...], levels: tuple[str, ...]) -> list[Row]:
    table = read_checked(path, "write the file again")
    missing = [name for name in (*ids, *levels) if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; there are "
            f"{', '.join(table.column_names)}"
        )
    rows: list[Row] = table.to_pylist()
    for place, row in enumerate(rows):
        for name in ids:
            if row[name] is None:
                raise ValueError(f"{path}, row {place}: {name} is null")
    return rows
