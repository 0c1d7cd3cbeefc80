"""Top-k lists of a trained generator against a slow reference, row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sgrec_torchrec.evaluation import generate
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.logs.stream import eval_batches
from sgrec_torchrec.schema import EvalRows

WIDTH = 80
"""More than the catalogue holds: the beam covers every prefix."""


def some_rows(ranker: Ranker, count: int) -> EvalRows:
    return ranker.split.test.take(np.arange(count))


def changed(ranker: Ranker, **changes: object) -> Ranker:
    """The same ranker with a full beam and other settings."""
    settings = replace(ranker.config.evaluation, beam_width=WIDTH, batch_size=3)
    log = replace(ranker.config.log, filter_seen=bool(changes.get("filter_seen")))
    config = replace(ranker.config, evaluation=settings, log=log)
    return replace(ranker, config=config)


@torch.no_grad()
def slow_scores(
    ranker: Ranker, rows: EvalRows, weight: float, num_candidates: int
) -> np.ndarray:
    """float64 [E, N]: log of the mixture; seen items at -inf where they are filtered.

    Each row's history is encoded alone; every item is asked for its probability; the
    graph's scores are normalised over all items and cut to the heaviest by hand.
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
        shown = seen[one.history_start_E[0] :]
        graph_N = ranker.graph.score(np.array([0, len(shown)]), shown).toarray()[0]
        order = np.lexsort((np.arange(num_items), -graph_N))
        prior_N = np.zeros(num_items)
        kept = order[:num_candidates]
        prior_N[kept] = graph_N[kept] / max(graph_N.sum(), 1e-300)
        scores_EN[row] = np.log((1 - weight) * network_N + weight * prior_N)
        if ranker.config.log.filter_seen:
            scores_EN[row, seen] = -np.inf
    return scores_EN


@pytest.mark.parametrize(
    ("weight", "filter_seen", "num_candidates"),
    [(0.0, False, 500), (0.4, False, 500), (0.4, True, 500), (0.6, False, 5)],
)
def test_lists_equal_the_slow_reference(
    finished_ranker: Ranker,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
    filter_seen: bool,
    num_candidates: int,
) -> None:
    monkeypatch.setattr(generate, "PRIOR_CANDIDATES", num_candidates)
    ranker = changed(finished_ranker, filter_seen=filter_seen)
    rows = some_rows(ranker, 7)  # batches of 3, 3 and 1
    items_EK, score_EK = ranker.top_items(rows, weight)
    slow_EN = slow_scores(ranker, rows, weight, num_candidates)
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
    items_EK, _ = ranker.top_items(rows, 0.4)
    for row in range(4):
        first = ranker.split.sequences.offsets_U1[rows.user_E[row]]
        end = first + rows.history_end_E[row]
        seen = ranker.split.sequences.items_R[first:end]
        assert len(set(seen)) > 1
        assert set(seen).isdisjoint(items_EK[row])


def test_rows_come_back_in_the_order_asked(finished_ranker: Ranker) -> None:
    ranker = changed(finished_ranker)
    rows = some_rows(ranker, 7)
    backwards = rows.take(np.arange(7)[::-1].copy())
    items_EK, score_EK = ranker.top_items(rows, 0.4)
    again_EK, again_score_EK = ranker.top_items(backwards, 0.4)
    np.testing.assert_array_equal(again_EK[::-1, :5], items_EK[:, :5])
    np.testing.assert_allclose(again_score_EK[::-1], score_EK, rtol=1e-5)


def test_histories_that_the_graph_does_not_know_are_ranked_by_the_network(
    finished_ranker: Ranker,
) -> None:
    graph = finished_ranker.graph
    empty = replace(
        graph,
        indptr_N1=np.zeros_like(graph.indptr_N1),
        neighbours_E=graph.neighbours_E[:0],
        weights_E=graph.weights_E[:0],
    )
    ranker = replace(changed(finished_ranker), graph=empty)
    rows = some_rows(ranker, 4)
    items_EK, score_EK = ranker.top_items(rows, 0.5)
    alone_EK, alone_score_EK = ranker.top_items(rows, 0.0)
    np.testing.assert_array_equal(items_EK, alone_EK)
    count = ranker.tokens.num_items
    np.testing.assert_allclose(
        score_EK[:, :count], alone_score_EK[:, :count] + np.log(0.5), rtol=1e-4
    )


def test_no_rows_are_refused(finished_ranker: Ranker) -> None:
    with pytest.raises(ValueError, match="no rows to rank"):
        finished_ranker.top_items(some_rows(finished_ranker, 0), 0.0)
