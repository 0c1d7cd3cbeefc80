"""Label files of users -> labelled cases; every error names file, row and column."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sgrec_torchrec.files.checked_parquet import read_checked
from sgrec_torchrec.hashing import FOLD, hash64, uniform
from sgrec_torchrec.judge.ask.aspects import LEVELS
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.labels import HELD_OUT_SHARE, LabelledCase, Preference
from sgrec_torchrec.logs.judged_users import id_hash

Row = dict[str, Any]
Key = tuple[str, int]


def read_label_files(
    points: Path, pairs: Path, reader: CaseReader, seed: int = 0
) -> list[LabelledCase]:
    """As ``labels.read_labels``."""
    if not points.is_file():
        raise FileNotFoundError(
            f"{points} is missing: make labels by `sgrec judge label RUN`"
        )
    rows = _rows(points, ("user_id", "as_of", "item_id"), _level_names(reader))
    items = {name: n for n, name in enumerate(reader.split.catalogue.item_ids)}
    users = {name: u for u, name in enumerate(reader.split.user_ids)}
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
        _case(key, group, preferred.get(key, ()), reader, users, items, seed)
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
        found.setdefault(key, []).append(Preference(*map(ids.index, ends)))
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
