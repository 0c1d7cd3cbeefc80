"""What is asked of judged pairs: spreads, wins, users; small tables, known answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.report import judged_pairs as page_pairs
from sgrec_torchrec.report.judged_folder import open_judged
from sgrec_torchrec.report.judged_pairs import Measure

Row = dict[str, Any]
ASPECTS = ("profile", "future_interest", "novelty", "context")
TITLES = {f"i{n}": f"Film {n}" for n in range(9)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All answers about a folder."""

    measures: dict[str, Measure]
    wins: dict[str, tuple[float, int]]
    users: dict[str, dict[str, Any]]
    items: list[tuple[str | None, str | None]]


def ask(
    judged: Path,
    titles: Mapping[str, str] = TITLES,
    *,
    max_users: int = 200,
    seed: int = 0,
) -> Asked:
    names = {n for p in judged.glob("part-*") for n in pq.read_schema(p).names}
    items = page_pairs.Items(titles)
    with page_pairs.open_pairs(open_judged(judged), names) as (connection, aspects):
        measures = page_pairs.measures_of(connection, aspects)
        users = page_pairs.users_of(connection, measures, items, max_users, seed)
        wins = page_pairs.wins_of(connection, measures)
    return Asked(
        measures={measure.name: measure for measure in measures},
        wins=wins,
        users={shown["id"]: shown for shown in users},
        items=items.rows(),
    )


def pair(user_id: str, item_id: str, source: str, score: float, **other: Any) -> Row:
    row: Row = {"user_id": user_id, "item_id": item_id, "source": source}
    row |= {f"aspect_{name}": score for name in ASPECTS}
    row |= {f"weight_{name}": 0.25 for name in ASPECTS}
    row |= {f"evidence_{name}": f"{name} of {item_id}" for name in ASPECTS}
    row |= {"reward": score, "as_of": 2, "history_hash": 1}
    return row | {"judge_version": "j1", "prompt_version": "p1"} | other


def user(user_id: str, **other: Any) -> Row:
    row: Row = {"user_id": user_id, "as_of": 2, "request_timestamp": 1_000_000_000}
    return row | {"history": ["i1", "i2"], "next_item_id": "i3"} | other


def write_pairs(judged: Path, number: int, rows: list[Row], without: str = "") -> None:
    """A part; without the columns whose names have the word ``without``."""
    table = pa.Table.from_pylist(rows)
    kept = [n for n in table.column_names if not without or without not in n]
    pq.write_table(table.select(kept), judged / f"part-{number}.parquet")


def write_users(judged: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), judged / "users.parquet")


PAIRS = [
    pair("u1", "i3", "next", 0.75),
    pair("u1", "i4", "beam", 0.5),
    pair("u1", "i5", "easy_negative", 0.25),
]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    write_pairs(tmp_path, 0, PAIRS)
    write_users(tmp_path, [user("u1"), user("u2")])
    return tmp_path


def test_user_has_history_time_weights_and_candidates_with_evidence(
    judged: Path,
) -> None:
    weights = (0.4, 0.3, 0.2, 0.1)
    named = {f"weight_{n}": w for n, w in zip(ASPECTS, weights, strict=True)}
    write_pairs(judged, 0, [row | named for row in PAIRS])
    asked = ask(judged)
    shown, items = asked.users["u1"], asked.items
    assert shown["time"] == "2001-09-09 01:46 UTC"
    assert [items[place][1] for place in shown["history"]] == ["Film 1", "Film 2"]
    assert items[shown["next"]] == ("i3", "Film 3")
    assert shown["weights"] == list(weights)
    place, source, scores, evidence = shown["rows"][0]
    assert (items[place][0], source, scores) == ("i3", "next", [0.75] * 5)
    assert evidence == [f"{name} of i3" for name in ASPECTS]
    assert list(asked.measures) == [*ASPECTS, "reward"]


def test_means_are_by_source(judged: Path) -> None:
    write_pairs(judged, 1, [pair("u2", "i6", "beam", 1.0)])
    spreads = ask(judged).measures["reward"].spreads
    # the beam: (0.5 + 1.0) / 2
    assert {source: spread.mean for source, spread in spreads.items()} == {
        "next": 0.75,
        "beam": 0.75,
        "easy_negative": 0.25,
    }


def test_bars_stand_where_the_scores_are(judged: Path) -> None:
    rows = [pair("u1", f"i{n}", "beam", s) for n, s in enumerate((0.0, 0.5, 0.5, 1.0))]
    write_pairs(judged, 0, rows)
    # bins 0, 10 and 20 of 21; the tallest has 2 pairs, the others half of it
    assert ask(judged).measures["profile"].spreads["beam"].path == (
        "M0.08 1V0.500h.84V1zM10.08 1V0.000h.84V1zM20.08 1V0.500h.84V1z"
    )


def test_wins_count_rivals_of_the_same_user_with_ties_as_half(judged: Path) -> None:
    others = [
        pair("u1", "i6", "beam", 0.75),
        pair("u2", "i3", "next", 0.25),
        pair("u2", "i7", "beam", 1.0),
        pair("u3", "i7", "beam", 0.0),
    ]
    write_pairs(judged, 1, others)
    # beam: 0.75 over 0.5, 0.75 beside 0.75, 0.25 under 1.0; u3 has no next item
    assert ask(judged).wins == {
        "beam": (1.5 / 3, 3),
        "easy_negative": (1.0, 1),
        "": (2.5 / 4, 4),
    }


def test_a_copy_of_the_next_item_is_no_rival(judged: Path) -> None:
    write_pairs(judged, 1, [pair("u1", "i3", "beam", 0.75)])
    assert ask(judged).wins[""] == (1.0, 2)


def test_wins_go_by_the_aspects_where_there_is_no_reward(judged: Path) -> None:
    low = {"aspect_profile": 0.0, "aspect_novelty": 0.0}
    # the mean of the beam is (1 + 1 + 0 + 0) / 4 = 0.5 under 0.75
    rows = [PAIRS[0], pair("u1", "i4", "beam", 1.0, **low)]
    write_pairs(judged, 0, rows, without="reward")
    assert ask(judged).wins[""] == (1.0, 1)


def test_item_without_a_title_is_known_by_its_id(judged: Path) -> None:
    assert ("i3", None) in ask(judged, {}).items


def test_missing_values_stay_missing(judged: Path) -> None:
    gaps = {"aspect_novelty": None, "evidence_novelty": None, "reward": None}
    write_pairs(judged, 1, [pair("u2", "i6", "beam", 1.0, **gaps)])
    asked = ask(judged)
    _, _, scores, evidence = asked.users["u2"]["rows"][0]
    assert scores == [1.0, 1.0, None, 1.0, None]
    assert evidence[2] is None
    assert asked.measures["novelty"].missing == 1
    assert asked.measures["novelty"].spreads["beam"].mean == 0.5


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.5, 1.5])
def test_a_score_out_of_range_is_a_missing_one(judged: Path, score: float) -> None:
    odd = pair("u2", "i6", "beam", 1.0, aspect_profile=score)
    write_pairs(judged, 1, [odd])
    asked = ask(judged)
    assert asked.users["u2"]["rows"][0][2][0] is None
    assert asked.measures["profile"].missing == 1


def test_a_mean_that_rounding_put_above_one_is_one(judged: Path) -> None:
    write_pairs(judged, 1, [pair("u2", "i6", "beam", 1.0, reward=1.0000002)])
    assert ask(judged).users["u2"]["rows"][0][2][-1] == 1.0


def test_a_column_without_any_value_is_no_measure(judged: Path) -> None:
    write_pairs(judged, 0, [row | {"aspect_context": None} for row in PAIRS])
    assert list(ask(judged).measures) == [*ASPECTS[:3], "reward"]


def test_fast_mode_has_no_evidence(judged: Path) -> None:
    write_pairs(judged, 0, PAIRS, without="evidence")
    assert ask(judged).users["u1"]["rows"][0][3] == [None] * 4


def test_parts_may_differ_in_their_columns(judged: Path) -> None:
    write_pairs(judged, 1, [pair("u2", "i6", "beam", 1.0)], without="context")
    asked = ask(judged)
    assert asked.users["u1"]["rows"][0][2] == [0.75] * 5
    assert asked.users["u2"]["rows"][0][2] == [1.0, 1.0, 1.0, None, 1.0]


def test_an_aspect_of_ones_own_is_shown_whatever_its_name(judged: Path) -> None:
    own = {'aspect_x"; DROP TABLE raw; --': 0.5}
    write_pairs(judged, 0, [row | own for row in PAIRS])
    asked = ask(judged)
    assert list(asked.measures)[-2:] == ['x"; DROP TABLE raw; --', "reward"]
    assert asked.users["u1"]["rows"][0][2][-2] == 0.5


def test_sources_nobody_knows_are_shown_together(judged: Path) -> None:
    write_pairs(judged, 1, [pair("u2", "i6", s, 1.0) for s in ("mine", "yours")])
    asked = ask(judged)
    assert asked.measures["reward"].spreads["other"].count == 2
    assert [row[1] for row in asked.users["u2"]["rows"]] == ["other", "other"]


def test_request_time_and_next_item_may_be_unknown(judged: Path) -> None:
    gaps = {"request_timestamp": None, "next_item_id": None}
    write_pairs(judged, 1, [pair("u2", "i6", "beam", 1.0)])
    write_users(judged, [user("u1", **gaps), user("u2", request_timestamp=10**17)])
    users = ask(judged).users
    assert (users["u1"]["time"], users["u1"]["next"]) == (None, None)
    assert users["u2"]["time"] == "100000000000000000 s"


def test_doubtful_history_is_pointed_out(judged: Path) -> None:
    write_pairs(judged, 1, [pair("u2", "i6", "beam", 1.0)])
    write_users(judged, [user("u1", as_of=9)])
    users = ask(judged).users
    assert "at 9, but the candidates were judged at 2" in users["u1"]["note"]
    assert "no row of this user" in users["u2"]["note"]


def test_users_are_a_seeded_choice_that_other_users_do_not_move(judged: Path) -> None:
    everyone = [pair(f"u{n}", "i3", "next", 0.5) for n in range(60)]
    write_pairs(judged, 0, everyone)
    first = set(ask(judged, max_users=7).users)
    assert len(first) == 7
    assert set(ask(judged, max_users=7).users) == first
    assert set(ask(judged, max_users=7, seed=1).users) != first
    others = sorted({row["user_id"] for row in everyone} - first)
    fewer = [row for row in everyone[::-1] if row["user_id"] not in others[:30]]
    write_pairs(judged, 0, fewer)
    assert set(ask(judged, max_users=7).users) == first


def test_candidates_are_bounded_and_the_next_item_stays(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_pairs, "MAX_ROWS", 6)
    rows = [pair("u1", f"x{n}", "beam", 0.5 + n / 100) for n in range(20)]
    rows += [pair("u1", "i3", "next", 0.1), pair("u2", "i3", "next", 0.1)]
    write_pairs(judged, 0, rows)
    asked = ask(judged)
    shown = asked.users["u1"]
    # 6 rows for 2 users: 3 each
    names = [asked.items[row[0]][0] for row in shown["rows"]]
    assert names == ["x19", "x18", "i3"]
    assert shown["total"] == 21


def test_long_texts_and_histories_are_cut(judged: Path) -> None:
    write_users(judged, [user("u1", history=[f"h{n}" for n in range(80)])])
    write_pairs(judged, 0, [pair("u1", "i3", "next", 0.5, evidence_profile="y" * 5000)])
    asked = ask(judged, {"i3": "t" * 5000})
    shown = asked.users["u1"]
    assert shown["earlier"] == 30
    assert asked.items[shown["history"][-1]][0] == "h79"
    assert len(shown["history"]) == 50
    assert shown["rows"][0][3][0] == "y" * 297 + "..."
    assert ("i3", "t" * 297 + "...") in asked.items
