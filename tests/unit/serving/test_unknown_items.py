"""Histories with items that came after training: left out, counted, never a fault."""

from pathlib import Path

import pytest

from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.run_files import logged_history


def test_one_unknown_item_costs_neither_its_user_nor_the_others(
    recommender: Recommender,
) -> None:
    histories = [["i1", "new", "i2"], ["i3"], ["newer", 10**30]]
    found = recommender.recommend(histories, 5)
    known = recommender.recommend([["i1", "i2"], ["i3"], []], 5)
    for one, other in zip(found, known, strict=True):
        assert (one.item_ids, one.scores) == (other.item_ids, other.scores)
    assert [one.num_unknown for one in found] == [1, 0, 2]
    assert [one.num_events for one in found] == [3, 1, 2]
    assert [one.num_read for one in found] == [2, 1, 0]
    assert found[0].unknown == ("'new'",)


def test_strict_names_the_history_and_the_item(recommender: Recommender) -> None:
    with pytest.raises(ValueError, match=r"history 1: item 'new' \(place 1\) is not"):
        recommender.recommend([["i1"], ["i2", "new"]], 5, strict=True)
    with pytest.raises(ValueError, match="history: item 'new'"):
        recommender.check(["new"], strict=True)
    assert recommender.check(["new"]).num_unknown == 1


def test_a_kept_state_is_told_of_other_unknown_events(recommender: Recommender) -> None:
    first = recommender.encode([["i1", "i2"]])
    more = recommender.encode([["i1", "new", "i2", "newer"]], first)
    assert more[0].hidden_D is first[0].hidden_D
    (found,) = recommender.decode(more, 5)
    (before,) = recommender.decode(first, 5)
    assert (found.num_events, found.num_unknown) == (4, 2)
    assert (before.num_events, before.num_unknown) == (2, 0)
    assert found.item_ids == before.item_ids
    assert recommender.encode([["i1", "new", "i2", "newer"]], more)[0] is more[0]


def test_users_of_the_log_may_be_named_by_integers(served_run: Path) -> None:
    with pytest.raises(ValueError, match="user 12345678 is not among the"):
        logged_history(served_run, 12345678)
