"""What a caller can send: checked, bounded, and told what to change."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.serving import Filters, History, Recommender
from sgrec_torchrec.serving import history as history_module
from sgrec_torchrec.serving.catalogue import ServedCatalogue
from sgrec_torchrec.serving.filters import check_filters
from sgrec_torchrec.serving.history import KnownHistory, check_history

CATALOGUE = ServedCatalogue(
    ["7", "-3", "tea", "9"],
    ["Seven", "Minus &amp; three", "Tea", "Nine"],
    ["Comedy, Drama", "drama", "Home > Kitchen > Tea", ""],
    "items.parquet",
)
EVENTS = ("view", "buy")
NAN = float("nan")


def check(history) -> KnownHistory:
    return check_history(history, CATALOGUE, EVENTS, "history 3")


def check_one(**fields) -> None:
    check_filters(Filters(**fields), CATALOGUE, 3, True, "filters")


def test_a_history_becomes_columns() -> None:
    known = check(
        History(
            item_ids=[7, "-3", np.int64(9), -3],
            timestamps=[5, 5, np.int32(9), 9],
            values=[1, None, 2.5, np.float32(0)],
            events=["buy", None, "view", "buy"],
        )
    )
    assert known.items_H.tolist() == [0, 1, 3, 1]
    assert known.timestamps_H.tolist() == [5, 5, 9, 9]
    assert known.events_H.tolist() == [1, -1, 0, 1]
    np.testing.assert_array_equal(known.values_H, [1, np.nan, 2.5, 0])
    assert known.has_times
    assert known.num_given == len(known) == 4
    plain = check(["tea", "7"])
    assert not plain.has_times
    assert plain.timestamps_H.tolist() == [0, 1]
    assert np.isnan(plain.values_H).all()


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (["tea", "coffee", 8], r"history 3: item 'coffee', 8 \(place 1\).* 4 items"),
        ([str(number) for number in range(50)], r"'0', '1', '2' and 45 more"),
        (["x" * 10_000], "item 'x{59}\\.\\.\\. "),
        ([-7], r"item -7 \(place 0\) is not in the catalogue"),
        ([2**63], "item 9223372036854775808"),
        ([10**5000], "item an integer of 16610 bits .* is not in the catalogue"),
        ([7.0], r"item: 7\.0 is of type float; give texts or integers"),
        ([NAN], "item: nan is of type float"),
        ([True], "item: True is of type bool"),
        ([None], "item: None is of type NoneType"),
        ([["7"]], "is of type list"),
        ("tea", "item_ids is of type str: give a list"),
        (b"tea", "item_ids is of type bytes"),
        (7, "item_ids is of type int"),
        (None, "item_ids is of type NoneType"),
        ({"7": 1}, "item_ids is of type dict"),
    ],
)
def test_items_must_be_known(history, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(history)


def test_events_of_unknown_items_are_left_out_and_counted() -> None:
    items = ["coffee", 7, "milk", "tea", -7, 10**5000]
    known = check_history(
        History(
            item_ids=items,
            timestamps=[1, 2, 3, 4, 5, 6],
            values=[1, 2, 3, 4, 5, 6],
            events=["buy", "view", None, "buy", "view", "view"],
        ),
        CATALOGUE,
        EVENTS,
        "history",
        strict=False,
    )
    assert known.items_H.tolist() == [0, 2]
    assert known.timestamps_H.tolist() == [2, 4]
    assert known.values_H.tolist() == [2, 4]
    assert known.events_H.tolist() == [0, 1]
    assert (known.num_given, known.num_unknown, known.num_cut) == (6, 4, 0)
    assert known.unknown == ("'coffee'", "'milk'", "-7")
    # Without times the order is that of what is left.
    plain = check_history(items, CATALOGUE, EVENTS, "history", strict=False)
    assert plain.timestamps_H.tolist() == [0, 1]
    assert plain.starts_with(check(["7"]))
    nothing = check_history(["coffee"], CATALOGUE, EVENTS, "history", strict=False)
    assert (len(nothing), nothing.num_unknown) == (0, 1)


@pytest.mark.parametrize("history", [[7.0], [None], [["7"]], "tea", [True]])
def test_what_is_no_id_is_refused_without_strict_too(history) -> None:
    with pytest.raises(ValueError, match="is of type"):
        check_history(history, CATALOGUE, EVENTS, "history", strict=False)


@pytest.mark.parametrize(
    ("field", "column", "message"),
    [
        ("timestamps", [1], "timestamps has 1 entries, item_ids 2"),
        ("timestamps", [2, 1], r"timestamps\[1\] is before timestamps\[0\].* oldest"),
        ("timestamps", [1, -1], r"timestamps\[1\] = -1: give whole seconds in \[0, 1"),
        ("timestamps", [1, 2**63], r"timestamps\[1\] = 9223372036854775808"),
        ("timestamps", [1, 10**5000], r"timestamps\[1\] = an integer of"),
        ("timestamps", [1, 1_700_000_000_000], r"timestamps\[1\] = 1700000000000"),
        ("timestamps", [1, 2.5], r"timestamps\[1\] = 2\.5"),
        ("timestamps", [NAN, 2], r"timestamps\[0\] = nan"),
        ("timestamps", [True, 2], r"timestamps\[0\] = True"),
        ("timestamps", "12", "timestamps is of type str"),
        ("values", [1.0, NAN], r"values\[1\] = nan: give a finite number"),
        ("values", [float("inf"), 1], r"values\[0\] = inf"),
        ("values", [1e39, 1], r"values\[0\] = 1e\+39"),
        ("values", ["1", 1], r"values\[0\] = '1'"),
        ("values", [False, 1], r"values\[0\] = False"),
        ("events", ["buy", "sell"], r"events\[1\] = 'sell': known are view, buy"),
        ("events", ["buy", 1], r"events\[1\] = 1"),
        ("events", [["buy"], "buy"], r"events\[0\] = \['buy'\]"),
    ],
)
def test_columns_must_be_sound(field: str, column, message: str) -> None:
    with pytest.raises(ValueError, match=f"history 3: {message}"):
        check(History(item_ids=["tea", "7"], **{field: column}))


def test_only_the_newest_events_are_looked_at(monkeypatch) -> None:
    monkeypatch.setattr(history_module, "MAX_EVENTS", 3)
    known = check(
        History(item_ids=["no such item", "7", "tea", "9"], timestamps=[NAN, 1, 2, 3])
    )
    assert known.items_H.tolist() == [0, 2, 3]
    assert (len(known), known.num_given) == (3, 4)
    # The same newest events behind others are another history.
    longer = check(["9", "7", "7", "tea", "9"])
    assert not longer.starts_with(check(["7", "tea"]))
    assert check(["7", "tea", "9"]).starts_with(check(["7", "tea"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocked": ["tea", "x"]}, "filters: blocked item 'x'"),
        ({"allowed": ["tea", -8]}, "filters: allowed item -8"),
        ({"allowed": ["tea", 7, "tea"]}, "allowed names item 'tea' twice: name it"),
        ({"blocked": [7, "7"]}, "blocked names item '7' twice"),
        ({"allowed": ["7"] * 5}, "allowed has 5 entries, the catalogue 4"),
        ({"allowed": "tea"}, "allowed is of type str: give a list"),
        ({"blocked": None}, "blocked is of type NoneType"),
        ({"blocked": [NAN]}, "blocked item: nan is of type float"),
        ({"category": "Dramma"}, "category 'Dramma' is unknown; near it: drama"),
        ({"category": 5}, "category = 5: give its name"),
        ({"category": ""}, "category '' is unknown"),
        ({"seen": 1}, "seen = 1: give True or False"),
        ({"max_per_prefix": 0}, r"max_per_prefix = 0 is outside \[1, 4\]"),
        ({"max_per_prefix": 2**70}, r"max_per_prefix = \d+ is outside"),
        ({"max_per_prefix": NAN}, "max_per_prefix = nan"),
        ({"max_per_prefix": True}, "max_per_prefix = True"),
        ({"prefix_length": 4}, r"prefix_length = 4 is outside \[1, 3\]"),
        ({"prefix_length": 1.5}, "prefix_length = 1.5"),
    ],
)
def test_filters_must_be_sound(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_one(**fields)


def test_filters_must_be_filters() -> None:
    with pytest.raises(ValueError, match=r"give Filters\(\.\.\.\), not dict"):
        check_filters({"seen": True}, CATALOGUE, 3, True, "filters")  # type: ignore[arg-type]


def test_a_category_takes_its_parts_in_any_case() -> None:
    assert CATALOGUE.items_of_category("DRAMA").tolist() == [0, 1]
    assert CATALOGUE.items_of_category("comedy, drama").tolist() == [0]
    assert CATALOGUE.items_of_category(" kitchen ").tolist() == [2]
    assert CATALOGUE.titles[1] == "Minus & three"
    bare = ServedCatalogue(["a"], ["A"], [""], "x")
    with pytest.raises(ValueError, match="this catalogue has no categories"):
        bare.items_of_category("tea")


def test_titles_without_whole_entities_stay_as_they_are() -> None:
    title = "/p?id=3&reg=eu&copy=2"
    assert ServedCatalogue(["a"], [title], [""], "x").titles == [title]


def test_an_item_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"items\.parquet names item '7' twice"):
        ServedCatalogue(["7", "8", "7"], ["", "", ""], ["", "", ""], "items.parquet")


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["i1", "i2", "i59"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(anything, anything, anything, anything, anything, anything)
@settings(max_examples=400, deadline=None)
def test_whatever_is_sent_is_answered_or_refused(
    recommender: Recommender, history, times, values, k, blocked, category
) -> None:
    """Never another error; and what is answered is a list of at most k items."""
    with contextlib.suppress(ValueError):
        (found,) = recommender.recommend(
            [History(item_ids=history, timestamps=times, values=values)],
            k,
            filters=Filters(blocked=blocked, category=category),
        )
        assert len(found.item_ids) <= k <= 60


def test_a_wrong_request_costs_no_pass_of_the_network(
    recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = recommender.encode([["i1"]])

    def encode(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(recommender, "encode", encode)
    with pytest.raises(ValueError, match=r"k = 61 is outside \[1, 60\]"):
        recommender.recommend([["i1"]], 61)
    with pytest.raises(ValueError, match="filters: blocked item 'tea'"):
        recommender.recommend([["i1"]], filters=Filters(blocked=["tea"]))
    # Who encodes apart is told too.
    with pytest.raises(ValueError, match=r"k = 61 is outside \[1, 60\]"):
        recommender.decode(states, 61)
