"""Judged pairs -> what the inspection page shows of them.

Everything is asked of the folder's database: spreads and wins over all pairs, then the
candidates of a few users.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from sgrec_torchrec.files.run_folder import USERS
from sgrec_torchrec.judge.ask.aspects import ASPECTS
from sgrec_torchrec.report.judged_folder import (
    ASPECT,
    EVIDENCE,
    REWARD,
    WEIGHT,
    JudgedFolder,
)

SOURCES = {
    "next": "true next item",
    "beam": "beam",
    "rollout": "rollout",
    "hard_negative": "hard negative",
    "easy_negative": "easy negative",
    "miss": "miss",
    "other": "other source",
}
"""As the page names them, in its order; unknown ones are together in the last."""
NUM_BINS = 21
"""Each is centred on a multiple of 1 / 20, so every level of the scale has its own."""
ROUNDING = 1e-4
"""A weighted mean in float32 may end so far outside [0, 1]."""
MAX_HISTORY = 50
MAX_ROWS = 20_000
"""Candidates in the whole page, shared equally by its users."""
MAX_TEXT = 300
MAX_VERSIONS = 8

_NUM_USERS = "SELECT count(*) FROM (SELECT DISTINCT user_id FROM pairs)"
_VERSIONS = f"""
    SELECT left(judge_version, {MAX_TEXT}), left(prompt_version, {MAX_TEXT}), count(*)
    FROM pairs
    GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT {MAX_VERSIONS + 1}
"""
_SPREAD = """
    SELECT source, round({column} * {steps})::INTEGER, count(*), sum({column})
    FROM pairs GROUP BY ALL
"""
# A copy of the next item under another source is no rival.
_WINS = """
    WITH scored AS (SELECT user_id, item_id, source, {score} AS score FROM pairs),
    answer AS (
        SELECT user_id, max(score) AS score, any_value(item_id) AS item_id
        FROM scored WHERE source = 'next' AND score IS NOT NULL GROUP BY user_id
    )
    SELECT source, avg((rival.score < answer.score)::INTEGER
        + 0.5 * (rival.score = answer.score)::INTEGER), count(*)
    FROM scored AS rival JOIN answer USING (user_id)
    WHERE source <> 'next' AND rival.score IS NOT NULL
        AND rival.item_id <> answer.item_id
    GROUP BY GROUPING SETS ((source), ())
"""
_CHOICE = """
    SELECT user_id FROM (SELECT DISTINCT user_id FROM pairs)
    ORDER BY md5($1::VARCHAR || ' ' || user_id), user_id LIMIT $2
"""
_HISTORIES = f"""
    SELECT user_id, as_of, request_timestamp, len(history), history[-{MAX_HISTORY}:],
        next_item_id
    FROM users WHERE user_id IN (SELECT unnest($1))
"""
_CANDIDATES = """
    SELECT user_id, item_id, source, as_of, count(*) OVER (PARTITION BY user_id),
        {columns}
    FROM pairs WHERE user_id IN (SELECT unnest($1))
    QUALIFY row_number() OVER (
        PARTITION BY user_id
        ORDER BY source = 'next' DESC, reward DESC NULLS LAST, item_id, source
    ) <= $2
    ORDER BY user_id, reward DESC NULLS LAST, item_id, source
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How one source's values of one measure spread over [0, 1]."""

    path: str
    """SVG path of the bins, in a box of ``NUM_BINS`` x 1."""
    count: int
    missing: int
    mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """An aspect or the reward, and how it spreads by source."""

    name: str
    column: str
    """In the view ``pairs``: ``m<i>`` or ``reward``."""
    label: str
    meaning: str
    spreads: dict[str, Spread]

    @property
    def count(self) -> int:
        """Pairs that have a value."""
        return sum(spread.count for spread in self.spreads.values())

    @property
    def missing(self) -> int:
        """Pairs that have none, or none in [0, 1]."""
        return sum(spread.missing for spread in self.spreads.values())


class Items:
    """Items in the order in which they are first asked for, each once."""

    def __init__(self, titles: Mapping[str, str]) -> None:
        self._titles = titles
        self._places: dict[str, int] = {}

    def place(self, item_id: str) -> int:
        """Where ``rows`` holds the item."""
        return self._places.setdefault(item_id, len(self._places))

    def rows(self) -> list[tuple[str | None, str | None]]:
        """(id, title) of each; the title is None where it is not known."""
        return [(cut(name), cut(self._titles.get(name))) for name in self._places]


@contextmanager
def open_pairs(
    judged: JudgedFolder, names: set[str]
) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[str]]]:
    """A database with the views ``users`` and ``pairs``, and the names of its aspects.

    Aspect i has score ``m<i>``, weight ``w<i>`` and evidence ``e<i>``; scores that are
    no number in [0, 1] are null.

    Args:
        names: of the columns, as ``judged.check_columns`` found them.
    """
    with judged.database() as connection:
        aspects = _aspect_names(names)
        columns = ["user_id, item_id, as_of, judge_version, prompt_version"]
        known = ", ".join(f"'{source}'" for source in SOURCES)
        columns.append(
            f"CASE WHEN source IN ({known}) THEN source ELSE 'other' END AS source"
        )
        for i, name in enumerate(aspects):
            columns.append(f"{_score(ASPECT + name, names)} AS m{i}")
            columns.append(f"{_score(WEIGHT + name, names)} AS w{i}")
            columns.append(f"{_text(EVIDENCE + name, names)} AS e{i}")
        columns.append(f"{_score(REWARD, names)} AS {REWARD}")
        selected = ", ".join(columns)
        connection.execute(f"CREATE VIEW pairs AS SELECT {selected} FROM raw")
        yield connection, aspects


def measures_of(
    connection: duckdb.DuckDBPyConnection, aspects: Sequence[str]
) -> list[Measure]:
    """The aspects, then the reward; those without any value are left out."""
    columns = {name: f"m{i}" for i, name in enumerate(aspects)} | {REWARD: REWARD}
    known = {aspect.name: aspect for aspect in ASPECTS}
    found = []
    for name, column in columns.items():
        bins: dict[str, dict[int | None, tuple[int, float]]] = {}
        query = _SPREAD.format(column=column, steps=NUM_BINS - 1)
        for source, place, count, total in rows_of(connection, query):
            bins.setdefault(source, {})[place] = (count, total)
        measure = Measure(
            name=name,
            column=column,
            label=known[name].words if name in known else name.replace("_", " "),
            meaning=known[name].meaning if name in known else "",
            spreads={source: _spread(counted) for source, counted in bins.items()},
        )
        found += [measure] if measure.count else []
    return found


def totals(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Users, pairs by source in the page's order, and the versions that judged."""
    query = "SELECT source, count(*) FROM pairs GROUP BY source"
    counts = dict(rows_of(connection, query))
    return {
        "num_users": rows_of(connection, _NUM_USERS)[0][0],
        "num_pairs": sum(counts.values()),
        "sources": [
            (s, label, counts[s]) for s, label in SOURCES.items() if s in counts
        ],
        "versions": rows_of(connection, _VERSIONS),
    }


def wins_of(
    connection: duckdb.DuckDBPyConnection, measures: Sequence[Measure]
) -> dict[str, tuple[float, int]]:
    """Source -> how often the same user's true next item scores higher; of how many.

    Ties are half a win. By the reward, or else the mean of the aspects that a pair has.
    The empty name stands for all sources.
    """
    columns = [measure.column for measure in measures]
    score = REWARD if REWARD in columns else f"list_avg([{', '.join(columns)}])"
    if not columns:
        return {}
    found = rows_of(connection, _WINS.format(score=score))
    return {source or "": (share, count) for source, share, count in found if count}


def users_of(
    connection: duckdb.DuckDBPyConnection,
    measures: Sequence[Measure],
    items: Items,
    max_users: int,
    seed: int,
) -> list[dict[str, Any]]:
    """A seeded choice of users with history and candidates, for the page's script."""
    chosen = [row[0] for row in rows_of(connection, _CHOICE, [seed, max_users])]
    past = {row[0]: row for row in rows_of(connection, _HISTORIES, [chosen])}
    most = max(1, MAX_ROWS // max(1, len(chosen)))
    aspects = [measure.column[1:] for measure in measures if measure.column != REWARD]
    columns = [measure.column for measure in measures]
    columns += [f"{letter}{i}" for letter in "ew" for i in aspects]
    query = _CANDIDATES.format(columns=", ".join(columns))
    num_scores, num_texts = len(measures), len(measures) + len(aspects)
    shown: dict[str, dict[str, Any]] = {}
    for row in rows_of(connection, query, [chosen, most]):
        user_id, item_id, source, as_of, total, *values = row
        if user_id not in shown:
            shown[user_id] = _history(user_id, past.get(user_id), as_of, items) | {
                "weights": [_rounded(weight) for weight in values[num_texts:]],
                "total": total,
                "rows": [],
            }
        scores = [_rounded(value) for value in values[:num_scores]]
        evidence = [cut(text) for text in values[num_scores:num_texts]]
        shown[user_id]["rows"].append([items.place(item_id), source, scores, evidence])
    return list(shown.values())


def rows_of(
    connection: duckdb.DuckDBPyConnection, query: str, values: object = None
) -> list[tuple[Any, ...]]:
    """All rows of an answer that is known to be small."""
    rows: list[tuple[Any, ...]] = connection.execute(query, values).fetchall()
    return rows


def cut(text: str | None) -> str | None:
    """At most ``MAX_TEXT`` characters, so that the page's size is bounded."""
    is_long = text is not None and len(text) > MAX_TEXT
    return text[: MAX_TEXT - 3] + "..." if text and is_long else text


def _aspect_names(names: set[str]) -> list[str]:
    """Known aspects in their order, then any others by name."""
    found = {name.removeprefix(ASPECT) for name in names if name.startswith(ASPECT)}
    known = [aspect.name for aspect in ASPECTS if aspect.name in found]
    return known + sorted(found - set(known))


def _score(name: str, names: set[str]) -> str:
    if name not in names:
        return "NULL::FLOAT"
    column = _quoted(name)
    is_score = f"{column} BETWEEN {-ROUNDING} AND {1 + ROUNDING}"
    return f"CASE WHEN {is_score} THEN greatest(0, least(1, {column})) END"


def _text(name: str, names: set[str]) -> str:
    return f"left({_quoted(name)}, {MAX_TEXT + 1})" if name in names else "NULL"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _spread(bins: Mapping[int | None, tuple[int, float]]) -> Spread:
    found = {place: bins[place] for place in bins if place is not None}
    count = sum(number for number, _ in found.values())
    highest = max((number for number, _ in found.values()), default=1)
    path = "".join(
        f"M{place + 0.08:.2f} 1V{1 - number / highest:.3f}h.84V1z"
        for place, (number, _) in sorted(found.items())
    )
    return Spread(
        path=path,
        count=count,
        missing=bins.get(None, (0, 0.0))[0],
        mean=sum(total for _, total in found.values()) / count if count else None,
    )


def _history(
    user_id: str, past: tuple[Any, ...] | None, as_of: int, items: Items
) -> dict[str, Any]:
    """What the judge knew of a user; ``note`` says where that is in doubt."""
    _, known_as_of, time_s, num_items, history, next_id = past or (None,) * 6
    note = ""
    if past is None:
        note = f"{USERS} has no row of this user, so the history is not known."
    elif known_as_of != as_of:
        note = (
            f"{USERS} holds the history at {known_as_of}, but the candidates were "
            f"judged at {as_of}: this is not what the judge saw."
        )
    return {
        "id": cut(user_id),
        "asOf": as_of,
        "time": _time(time_s),
        "history": [items.place(item_id) for item_id in history or []],
        "earlier": max(0, (num_items or 0) - MAX_HISTORY),
        "next": None if next_id is None else items.place(next_id),
        "note": note,
    }


def _time(time_s: int | None) -> str | None:
    if time_s is None:
        return None
    try:
        return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):
        return f"{time_s} s"


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)
