"""Top-k lists of a trained generator against a slow reference, row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evidence.gather import histories_of
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.logs.stream import eval_batches
from sgrec_torchrec.schema import EvalRows

WIDTH = 80
"""More than the catalogue holds: the beam covers every prefix."""


def some_rows(ranker: Ranker, count: int) -> EvalRows:
    return ranker.split.test.take(np.arange(count))


def changed(
    ranker: Ranker, *, filter_seen: bool = False, num_candidates: int = 500
) -> Ranker:
    """The same ranker with a full beam and other settings."""
    settings = replace(ranker.config.evaluation, beam_width=WIDTH, batch_size=3)
    log = replace(ranker.config.log, filter_seen=filter_seen)
    config = replace(ranker.config, evaluation=settings, log=log)
    form = replace(ranker.evidence.config, num_candidates=num_candidates)
    evidence = replace(ranker.evidence, config=form, filter_seen=filter_seen)
    return replace(ranker, config=config, evidence=evidence)


@torch.no_grad()
def slow_scores(ranker: Ranker, rows: EvalRows, weight: float) -> np.ndarray:
    """float64 [E, N]: log of the mixture; seen items at -inf where they are filtered.

    Each row's history is encoded alone, every item is asked for its probability, and
    the evidence for its candidates.
    """
    num_items = ranker.tokens.num_items
    generator = ranker.dmp.module
    sequences = ranker.split.sequences
    scores_EN = np.full((len(rows), num_items), -np.inf)
    for row in range(len(rows)):
        one = rows.take(np.array([row]))
        (batch,) = eval_batches(
            sequences,
            one,
            ranker.tokens.codes_NL,
            ranker.tokens.num_codes,
            ranker.config.generator,
            batch_size=1,
        )
        logprob_NL = item_logprob(
            generator.tower.decoder,
            generator.tower.trie,
            generator.encode_last(batch.features),
            torch.zeros(num_items, dtype=torch.int64),
            torch.arange(num_items),
        )
        network_N = logprob_NL.double().sum(1).exp().numpy()
        first = sequences.offsets_U1[one.user_E[0]]
        seen = sequences.items_R[first : first + one.history_end_E[0]]
        item_EM, probability_EM = ranker.evidence.candidates(
            histories_of(sequences, one)
        )
        prior_N = np.zeros(num_items)
        for item, probability in zip(item_EM[0], probability_EM[0], strict=True):
            if item >= 0:
                prior_N[item] = probability
        scores_EN[row] = np.log((1 - weight) * network_N + weight * prior_N)
        if ranker.config.log.filter_seen:
            scores_EN[row, seen] = -np.inf
    return scores_EN


@pytest.mark.parametrize(
    ("weight", "filter_seen", "num_candidates"),
    [(0.0, False, 500), (0.4, False, 500), (0.4, True, 500), (0.6, False, 5)],
)
def test_lists_equal_the_slow_reference(
    finished_ranker: Ranker, weight: float, filter_seen: bool, num_candidates: int
) -> None:
    ranker = changed(
        finished_ranker, filter_seen=filter_seen, num_candidates=num_candidates
    )
    rows = some_rows(ranker, 7)  # batches of 3, 3 and 1
    (top,) = ranker.top_items(rows, (weight,))
    items_EK, score_EK = top.item_EW, top.score_EW
    slow_EN = slow_scores(ranker, rows, weight)
    assert items_EK.shape == score_EK.shape == (7, WIDTH)
    assert items_EK.dtype == np.int32
    assert score_EK.dtype == np.float32
    for row in range(7):
        count = int(np.isfinite(slow_EN[row]).sum())
        assert (items_EK[row, count:] == -1).all()
        assert np.isneginf(score_EK[row, count:]).all()
        found = items_EK[row, :count]
        assert sorted(found) == sorted(np.flatnonzero(np.isfinite(slow_EN[row])))
        expected = -np.sort(-slow_EN[row])[:count]
        np.testing.assert_allclose(score_EK[row, :count], expected, rtol=1e-4)
        np.testing.assert_allclose(slow_EN[row, found], expected, rtol=1e-4)


def test_filter_takes_out_items_older_than_the_shown_history(
    finished_ranker: Ranker,
) -> None:
    ranker = changed(finished_ranker, filter_seen=True)
    rows = some_rows(ranker, 4)
    rows = replace(rows, history_start_E=(rows.history_end_E - 1).astype(np.int32))
    (top,) = ranker.top_items(rows, (0.4,))
    for row in range(4):
        first = ranker.split.sequences.offsets_U1[rows.user_E[row]]
        end = first + rows.history_end_E[row]
        seen = ranker.split.sequences.items_R[first:end]
        assert len(set(seen)) > 1
        assert set(seen).isdisjoint(top.item_EW[row])


def test_rows_come_back_in_the_order_asked(finished_ranker: Ranker) -> None:
    ranker = changed(finished_ranker)
    rows = some_rows(ranker, 7)
    backwards = rows.take(np.arange(7)[::-1].copy())
    (top,) = ranker.top_items(rows, (0.4,))
    (again,) = ranker.top_items(backwards, (0.4,))
    np.testing.assert_array_equal(again.item_EW[::-1, :5], top.item_EW[:, :5])
    np.testing.assert_allclose(again.score_EW[::-1], top.score_EW, rtol=1e-5)


def test_several_weights_in_one_call_equal_one_call_each(
    finished_ranker: Ranker,
) -> None:
    ranker = changed(finished_ranker)
    rows = some_rows(ranker, 7)
    weights = (0.6, 0.0, 0.2)
    together = ranker.top_items(rows, weights)
    assert len(together) == 3
    for weight, top in zip(weights, together, strict=True):
        (alone,) = ranker.top_items(rows, (weight,))
        np.testing.assert_array_equal(top.item_EW, alone.item_EW)
        np.testing.assert_array_equal(top.score_EW, alone.score_EW)
    assert not np.array_equal(together[0].score_EW, together[2].score_EW)


def test_an_unresolved_history_of_the_evidence_is_an_error(
    finished_ranker: Ranker,
) -> None:
    ranker = changed(finished_ranker)
    unresolved = replace(ranker.config.evidence, max_history=None)
    ranker = replace(ranker, config=replace(ranker.config, evidence=unresolved))
    with pytest.raises(ValueError, match=r"evidence\.max_history is None"):
        ranker.top_items(some_rows(ranker, 3), (0.4,))


def test_evidence_is_not_asked_where_no_weight_needs_it(
    finished_ranker: Ranker,
) -> None:
    ranker = replace(changed(finished_ranker), evidence=None)
    rows = some_rows(ranker, 4)
    (alone,) = ranker.top_items(rows, (0.0,))
    (expected,) = changed(finished_ranker).top_items(rows, (0.0,))
    np.testing.assert_array_equal(alone.score_EW, expected.score_EW)


def without_edges(ranker: Ranker) -> Ranker:
    relations = ranker.evidence.relations
    empty = replace(
        relations,
        indptr_R1=np.zeros_like(relations.indptr_R1),
        neighbours_E=relations.neighbours_E[:0],
        weights_E=relations.weights_E[:0],
    )
    return replace(ranker, evidence=replace(ranker.evidence, relations=empty))


def test_rows_without_evidence_are_ranked_by_the_network(
    finished_ranker: Ranker,
) -> None:
    # Filtered of what was seen, relations without edges have no candidate at all.
    ranker = without_edges(changed(finished_ranker, filter_seen=True))
    rows = some_rows(ranker, 4)
    mixed, alone = ranker.top_items(rows, (0.5, 0.0))
    np.testing.assert_array_equal(mixed.item_EW, alone.item_EW)
    is_real = alone.item_EW >= 0
    assert is_real.any(axis=1).all()
    np.testing.assert_allclose(
        mixed.score_EW[is_real], alone.score_EW[is_real] + np.log(0.5), rtol=1e-4
    )


def test_relations_without_edges_still_know_what_repeats(
    finished_ranker: Ranker,
) -> None:
    ranker = without_edges(changed(finished_ranker))
    rows = some_rows(ranker, 4)
    (mixed,) = ranker.top_items(rows, (0.98,))
    for row in range(4):
        first = ranker.split.sequences.offsets_U1[rows.user_E[row]]
        low, high = first + rows.history_start_E[row], first + rows.history_end_E[row]
        seen = set(ranker.split.sequences.items_R[low:high].tolist())
        assert set(mixed.item_EW[row, : len(seen)].tolist()) == seen


def test_row_without_a_history_is_ranked_by_the_network(
    finished_ranker: Ranker,
) -> None:
    ranker = changed(finished_ranker)
    rows = some_rows(ranker, 4)
    end_E = rows.history_end_E.copy()
    end_E[1] = 0
    mixed, alone = ranker.top_items(replace(rows, history_end_E=end_E), (0.5, 0.0))
    np.testing.assert_array_equal(mixed.item_EW[1], alone.item_EW[1])
    count = ranker.tokens.num_items
    np.testing.assert_allclose(
        mixed.score_EW[1, :count], alone.score_EW[1, :count] + np.log(0.5), rtol=1e-4
    )
    assert not np.array_equal(mixed.item_EW[0], alone.item_EW[0])


def test_no_rows_are_refused(finished_ranker: Ranker) -> None:
    with pytest.raises(ValueError, match="no rows to rank"):
        finished_ranker.top_items(some_rows(finished_ranker, 0), (0.0,))


def test_evidence_may_see_events_older_than_those_shown(
    finished_ranker: Ranker,
) -> None:
    ranker = changed(finished_ranker)
    rows = some_rows(ranker, 4)
    newest = replace(rows, history_start_E=(rows.history_end_E - 1).astype(np.int32))
    np.testing.assert_array_equal(
        newest.with_history(10_000).history_start_E, np.zeros(4)
    )

    def found(max_history: int) -> np.ndarray:
        evidence = replace(ranker.config.evidence, max_history=max_history)
        config = replace(ranker.config, evidence=evidence)
        return replace(ranker, config=config).top_items(newest, [0.9])[0].score_EW

    # One event is what the network sees; with more, the evidence says other things.
    assert not np.allclose(found(1), found(10_000))
    np.testing.assert_array_equal(found(10_000), found(500))
