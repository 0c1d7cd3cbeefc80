"""Which rows are evaluated, what the prior's weight is chosen by, what is written."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.config.arguments import override
from sgrec_torchrec.evaluation import offline
from sgrec_torchrec.evaluation.generate import TopItems
from sgrec_torchrec.evaluation.offline import (
    check_rows,
    choose_prior_weight,
    sample_rows,
    validation_ndcg,
)
from sgrec_torchrec.logs.judged_users import is_label_user
from sgrec_torchrec.schema import EvalRows

CONFIG = RUNS["movielens"]


def make_rows(user_E: list[int]) -> EvalRows:
    count = len(user_E)
    return EvalRows(
        user_E=np.array(user_E, dtype=np.int64),
        history_start_E=np.zeros(count, dtype=np.int32),
        history_end_E=np.ones(count, dtype=np.int32),
        target_E=np.arange(count, dtype=np.int32) % 5,
        target_timestamp_E=np.zeros(count, dtype=np.int64),
    )


def make_ranker(
    config: RunConfig, valid: EvalRows, place_of: Callable[[float], int]
) -> SimpleNamespace:
    """Finds every target at the place that ``place_of(prior weight)`` names."""
    asked: list[tuple[int, tuple[float, ...]]] = []

    def top_items(rows: EvalRows, prior_weights: Sequence[float]) -> list[TopItems]:
        asked.append((len(rows), tuple(prior_weights)))
        found = []
        for weight in prior_weights:
            item_EW = np.full((len(rows), 20), -1, dtype=np.int32)
            item_EW[:, place_of(weight) - 1] = rows.target_E
            score_EW = np.zeros(item_EW.shape, dtype=np.float32)
            found.append(TopItems(item_EW=item_EW, score_EW=score_EW))
        return found

    split = SimpleNamespace(valid=valid, test=valid, protocol="given")
    return SimpleNamespace(config=config, split=split, top_items=top_items, asked=asked)


def test_all_rows_are_taken_where_they_fit() -> None:
    rows = make_rows([0, 0, 1, 2])
    np.testing.assert_array_equal(sample_rows(rows, 4, seed=0), [0, 1, 2, 3])


def test_sample_gives_each_user_its_share() -> None:
    # 10, 30 and 60 rows of three users, mixed; 20 of 100 are 2, 6 and 12.
    user_E = [0] * 10 + [1] * 30 + [2] * 60
    order = np.random.default_rng(0).permutation(100)
    rows = make_rows([user_E[place] for place in order])
    chosen = sample_rows(rows, 20, seed=3)
    assert len(set(chosen.tolist())) == 20
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(rows.user_E[chosen])
    assert (np.abs(counts - np.array([2, 6, 12])) <= 1).all()


def test_sample_depends_on_the_seed_alone() -> None:
    rows = make_rows([0] * 50 + [1] * 50)
    first = sample_rows(rows, 30, seed=1)
    np.testing.assert_array_equal(sample_rows(rows, 30, seed=1), first)
    assert sample_rows(rows, 30, seed=2).tolist() != first.tolist()


def test_weight_is_the_one_that_ranks_the_valid_rows_best(monkeypatch) -> None:
    places = {0.0: 5, 0.2: 4, 0.4: 1, 0.6: 2}
    monkeypatch.setattr(offline, "PRIOR_WEIGHTS", tuple(places))
    ranker = make_ranker(CONFIG, make_rows([0, 1, 2]), places.__getitem__)
    assert choose_prior_weight(ranker) == 0.4
    # All weights in one call: histories are encoded once.
    assert ranker.asked == [(3, tuple(places))]


def test_weight_is_chosen_deeper_than_ten(monkeypatch) -> None:
    # At depth 10 no weight has a hit and the first would be taken.
    places = {0.0: 20, 0.2: 18, 0.4: 11, 0.6: 15}
    monkeypatch.setattr(offline, "PRIOR_WEIGHTS", tuple(places))
    ranker = make_ranker(CONFIG, make_rows([0, 1, 2]), places.__getitem__)
    assert choose_prior_weight(ranker) == 0.4


def test_of_equal_weights_the_smallest_is_taken() -> None:
    ranker = make_ranker(CONFIG, make_rows([0, 1]), lambda weight: 2)
    assert choose_prior_weight(ranker) == 0.0


def test_given_weight_is_kept_without_looking() -> None:
    config = override(CONFIG, ["evaluation.prior_weight=0.3", "log.fit_on=train+valid"])
    ranker = make_ranker(config, make_rows([]), lambda weight: 1)
    assert choose_prior_weight(ranker) == 0.3
    assert ranker.asked == []


def test_refit_without_a_given_weight_is_not_ranked_at_all() -> None:
    config = override(CONFIG, ["log.fit_on=train+valid"])
    ranker = make_ranker(config, make_rows([0, 1]), lambda weight: 1)
    with pytest.raises(ValueError, match=r"evaluation\.prior_weight is None"):
        choose_prior_weight(ranker)
    assert ranker.asked == []


def test_validation_asks_the_network_alone_on_a_bounded_sample() -> None:
    config = override(CONFIG, ["evaluation.max_valid_rows=4"])
    ranker = make_ranker(config, make_rows([0] * 9), lambda weight: 3)
    validate = validation_ndcg(ranker)
    assert validate is not None
    # Each target stands third: 1 / log2(1 + 3).
    assert validate() == pytest.approx(0.5)
    assert ranker.asked == [(4, (0.0,))]


def test_rows_that_post_training_asks_choose_nothing() -> None:
    names = [f"u{number}" for number in range(40)]
    labels = int(is_label_user(names, CONFIG.log.seed).sum())
    assert 0 < labels < 40
    for assignments, expected in (
        (["align.num_steps=5", "align.prompts=fresh"], labels),
        (["align.num_steps=5"], 40),
        (["align.prompts=fresh"], 40),
    ):
        config = override(CONFIG, assignments)
        ranker = make_ranker(config, make_rows(list(range(40))), lambda _: 1)
        ranker.split.user_ids = names
        choose_prior_weight(ranker)
        validate = validation_ndcg(ranker)
        assert validate is not None
        validate()
        assert [rows for rows, _ in ranker.asked] == [expected] * 2


def test_refit_has_nothing_to_validate_on() -> None:
    config = override(CONFIG, ["log.fit_on=train+valid"])
    assert validation_ndcg(make_ranker(config, make_rows([0]), lambda _: 1)) is None
    assert validation_ndcg(make_ranker(CONFIG, make_rows([]), lambda _: 1)) is None


@pytest.mark.parametrize(
    ("assignments", "num_valid", "num_test", "message"),
    [
        ([], 3, 0, "log.protocol = 'given' leaves no test rows"),
        ([], 0, 3, "evaluation.prior_weight is None but there are no valid rows"),
        (["log.fit_on=train+valid"], 3, 3, "evaluation.prior_weight is None"),
    ],
)
def test_run_that_could_not_be_evaluated_is_refused(
    assignments: list[str], num_valid: int, num_test: int, message: str
) -> None:
    split = SimpleNamespace(
        valid=make_rows([0] * num_valid),
        test=make_rows([0] * num_test),
        protocol="given",
    )
    with pytest.raises(ValueError, match=message):
        check_rows(split, override(CONFIG, assignments))


def test_run_that_can_be_evaluated_passes() -> None:
    split = SimpleNamespace(
        valid=make_rows([]), test=make_rows([0]), protocol="chronological"
    )
    check_rows(split, override(CONFIG, ["evaluation.prior_weight=0"]))


def test_averages_over_nothing_become_null() -> None:
    figures = {"a": math.nan, "b": [0.5, math.nan], "c": {"d": math.nan, "rows": 0}}
    plain = offline.without_nan(figures)
    assert plain == {"a": None, "b": [0.5, None], "c": {"d": None, "rows": 0}}


def test_examples_show_the_newest_history_before_the_target(finished_ranker) -> None:
    split = finished_ranker.split
    rows = split.test.take(np.arange(5))
    for row in range(5):
        shown = offline._history(split, rows, row)
        first = split.sequences.offsets_U1[rows.user_E[row]]
        items = split.sequences.items_R[first:].tolist()
        end = int(rows.history_end_E[row])
        assert shown.tolist() == items[max(0, end - offline.SHOWN_HISTORY) : end]
        assert items[end] == rows.target_E[row]


def test_beginning_of_a_window_bounds_the_history_shown(finished_ranker) -> None:
    split = finished_ranker.split
    rows = split.test.take(np.arange(1))
    late = replace(rows, history_start_E=(rows.history_end_E - 2).astype(np.int32))
    assert len(offline._history(split, late, 0)) == 2


def test_results_are_valid_json(finished_run) -> None:
    text = (finished_run / "evaluation" / "results.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    results = json.loads(text, parse_constant=refuse)
    assert set(results["systems"][0]["cold"]) >= {"rows", "HR@10"}
