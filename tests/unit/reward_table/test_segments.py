"""Build, append and compact against a dict that obeys the declared rule."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgrec_torchrec.reward_table import (
    RewardTable,
    append_segment,
    build_reward_table,
    compact,
)

pytestmark = pytest.mark.long

USERS, ITEMS = range(-3, 4), range(5)
STEP = 1 / 65535


@dataclass
class Model:
    """user -> (prefix, {item: (reward, aspect)}); newest judgement wins."""

    users: dict[Any, tuple[tuple[int, int], dict[Any, tuple[float, float]]]] = field(
        default_factory=dict
    )

    def append(self, judged: dict[Any, Any]) -> None:
        for user, (prefix, pairs) in judged.items():
            known = self.users.get(user)
            older = known[1] if known and known[0] == prefix else {}
            self.users[user] = (prefix, {**older, **pairs})


prefixes = st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2**64 - 1]))
scores = st.floats(0, 1, width=32)
pairs = st.dictionaries(
    st.sampled_from(ITEMS), st.tuples(scores, scores), min_size=1, max_size=4
)
judgements = st.dictionaries(
    st.sampled_from(USERS), st.tuples(prefixes, pairs), min_size=1, max_size=5
)
steps = st.lists(st.one_of(st.just("compact"), judgements), max_size=4)


def write(path: Path, judged: dict[Any, Any], name: Any) -> None:
    rows = [
        (name(user), name(item), *score, *prefix)
        for user, (prefix, of_user) in judged.items()
        for item, score in of_user.items()
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    names = ("user_id", "item_id", "reward", "aspect_a", "as_of", "history_hash")
    types = (None, None, pa.float32(), pa.float64(), pa.int64(), pa.uint64())
    arrays = [pa.array(one, kind) for one, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.table(arrays, names=names), path)


def check(table: RewardTable, model: Model, name: Any) -> None:
    asked = [(user, item) for user in (*USERS, 99) for item in (*ITEMS, 99)]
    users, items = ([name(one) for one in side] for side in zip(*asked, strict=True))
    rewards, found, aspects = table.lookup(users, items, aspects=True)
    for nth, (user, item) in enumerate(asked):
        wanted = model.users.get(user, (None, {}))[1].get(item)
        assert found[nth] == (wanted is not None), (user, item)
        got = (rewards[nth], aspects[nth, 0])
        if wanted is None:
            assert np.isnan(got).all()
        else:
            assert got == pytest.approx(wanted, abs=STEP / 2 + 1e-7)
    position, history_hash, is_user = table.as_of(users)
    for nth, (user, _) in enumerate(asked):
        prefix = model.users.get(user, ((-1, 0), {}))[0]
        assert (position[nth], history_hash[nth]) == prefix
        assert is_user[nth] == (user in model.users)


@pytest.mark.parametrize(
    "name",
    [int, lambda one: one * 2**40, lambda one: f"id-{one}"],
    ids=["near", "far", "text"],
)
@given(first=judgements, later=steps)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_history_of_a_table_answers_as_the_model_does(
    tmp_path_factory, name, first: dict[Any, Any], later: Sequence[Any]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    judged, table, model = folder / "judged.parquet", folder / "table", Model()
    write(judged, first, name)
    build_reward_table(judged, table)
    model.append(first)
    check(RewardTable.open(table), model, name)
    for step in later:
        if step == "compact":
            compact(table)
            manifest = RewardTable.open(table).manifest
            assert len(manifest.segments) == 1
            assert manifest.num_users == len(model.users)
            items = {item for _, of_user in model.users.values() for item in of_user}
            if manifest.segments[0].num_pairs == sum(
                len(of_user) for _, of_user in model.users.values()
            ):
                assert manifest.num_items >= len(items)
        else:
            write(judged, step, name)
            append_segment(table, judged)
            model.append(step)
        opened = RewardTable.open(table)
        opened.verify()
        check(opened, model, name)
        assert opened.manifest.num_users == len(model.users)


def test_compaction_forgets_items_that_no_pair_names(tmp_path: Path) -> None:
    judged, table = tmp_path / "judged.parquet", tmp_path / "table"
    write(judged, {1: ((5, 0), {10: (0.5, 0.5), 11: (0.5, 0.5)})}, int)
    build_reward_table(judged, table)
    write(judged, {1: ((6, 0), {12: (0.25, 0.5)})}, int)
    report = append_segment(table, judged)
    assert report.num_replaced_users == 1
    assert RewardTable.open(table).manifest.num_items == 3
    report = compact(table)
    assert (report.num_rows, report.num_pairs, report.num_items) == (3, 1, 1)
    assert RewardTable.open(table).manifest.num_items == 1


def test_compaction_does_not_round_again(tmp_path: Path) -> None:
    judged, table = tmp_path / "judged.parquet", tmp_path / "table"
    noise = np.random.default_rng(0)
    pairs = {item: (noise.random(), noise.random()) for item in range(500)}
    write(judged, {1: ((5, 0), pairs)}, int)
    build_reward_table(judged, table, reward_range=(-0.3, 1.7))
    write(judged, {2: ((5, 0), pairs)}, int)
    append_segment(table, judged)
    asked = [1] * 500 + [2] * 500, [*range(500), *range(500)]
    before = RewardTable.open(table).lookup(*asked, aspects=True)
    compact(table)
    after = RewardTable.open(table).lookup(*asked, aspects=True)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_compaction_merges_many_ranges(tmp_path: Path, monkeypatch) -> None:
    from sgrec_torchrec.reward_table import compaction

    monkeypatch.setattr(compaction, "PAIRS_PER_RANGE", 7)
    judged, table, model = tmp_path / "judged.parquet", tmp_path / "table", Model()
    noise = np.random.default_rng(0)
    for nth in range(3):
        users = noise.choice(USERS, 5, replace=False).tolist()
        said = {user: ((nth // 2, 0), {2: (nth / 2, 0.5)}) for user in users}
        write(judged, said, int)
        if nth:
            append_segment(table, judged)
        else:
            build_reward_table(judged, table)
        model.append(said)
    compact(table)
    check(RewardTable.open(table), model, int)


def test_compaction_adds_up_costs_and_keeps_versions(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    one = write_pairs([(1, 1, 0.5)], judge_version=["j1"], prompt_version=["p1"])
    two = write_pairs([(2, 1, 0.5)], judge_version=["j2"], prompt_version=["p1"])
    build_reward_table(one, table, token_cost={"tokens": 10})
    append_segment(table, two, token_cost={"tokens": 5, "usd": 0.5})
    compact(table)
    (segment,) = RewardTable.open(table).manifest.segments
    assert segment.judge_versions == ("j1", "j2")
    assert segment.prompt_versions == ("p1",)
    assert segment.token_cost == {"tokens": 15, "usd": 0.5}
    assert segment.sources == (str(one), str(two))


def test_compaction_of_one_segment_changes_nothing(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 1, 0.5)]), table)
    before = (table / "manifest.json").read_text()
    assert compact(table).num_pairs == 1
    assert (table / "manifest.json").read_text() == before


def test_segments_with_other_columns_are_refused(write_pairs, tmp_path) -> None:
    table = tmp_path / "table"
    build_reward_table(write_pairs([(1, 1, 0.5)]), table)
    with_aspect = write_pairs([(1, 1, 0.5)], aspect_a=pa.array([0.5]))
    with pytest.raises(
        ValueError, match=r"aspects are aspect_a, but are none in the table"
    ):
        append_segment(table, with_aspect)
    with pytest.raises(
        ValueError, match=r"user_id holds strings, but holds integers in the"
    ):
        append_segment(table, write_pairs([("u", 1, 0.5)]))
    with_prefix = write_pairs([(1, 1, 0.5)], as_of=pa.array([3]))
    with pytest.raises(
        ValueError, match=r"as_of is given, but is not given in the table"
    ):
        append_segment(table, with_prefix)
    assert len(RewardTable.open(table).manifest.segments) == 1


def test_appending_to_nothing_is_refused(write_pairs, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing: name the"):
        append_segment(tmp_path / "table", write_pairs([(1, 1, 0.5)]))
    assert not (tmp_path / "table").exists()


def test_where_no_table_is_nothing_is_appended_or_merged(write_pairs, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    file = write_pairs([(1, 1, 0.5)])
    for change in (lambda: append_segment(home, file), lambda: compact(home)):
        with pytest.raises(FileNotFoundError, match=r"manifest.json is missing: name"):
            change()
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]
