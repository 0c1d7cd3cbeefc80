"""A trained run -> its figures, beside baselines on the same rows.

Reads the validation and test rows of a split; writes ``evaluation/results.json``,
``examples.json`` and one ``hits-<system>.parquet`` per system, so that runs can be
compared row by row.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import main_rank_first
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evaluation.baselines import (
    BASELINES,
    OWN_HISTORY,
    Baseline,
    Fitted,
)
from sgrec_torchrec.evaluation.beyond import (
    Vectors,
    beyond_accuracy,
    cold_rows,
    short_history_rows,
    slice_metrics,
)
from sgrec_torchrec.evaluation.compare import compare, hits_path, write_hits
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.ranking import (
    KS,
    metric_values,
    ranking_table,
    target_ranks,
)
from sgrec_torchrec.files.run_folder import EVALUATION, EXAMPLES, RESULTS
from sgrec_torchrec.files.sealed_json import RESULTS_FORMAT, write_sealed
from sgrec_torchrec.hashing import hash64
from sgrec_torchrec.item_graph.text import item_texts, tf_idf
from sgrec_torchrec.logs.importers.clean_text import resolve_entities
from sgrec_torchrec.logs.judged_users import is_label_user
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Int32Array,
    Int64Array,
    SplitLog,
)

PRIOR_WEIGHTS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
CHOICE_DEPTH = 20
"""The mixture is chosen by NDCG at this depth: at 10 a short log has too few hits."""
NUM_EXAMPLES = 8
SHOWN_HISTORY = 12
SHOWN_ITEMS = 10
GENERATOR = "generator"
NETWORK_ALONE = "generator without evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One system's lists over the evaluated rows."""

    system: str
    items_EK: Int32Array
    rank_E: Int32Array


def check_rows(split: SplitLog, config: RunConfig) -> None:
    """Raise before the hours of training where the evaluation could not follow.

    Raises:
        ValueError: if there is no test row, or the prior's weight is open and there
            are no valid rows to choose it by.
    """
    if not len(split.test):
        raise ValueError(
            f"log.protocol = {split.protocol!r} leaves no test rows: give users with "
            "more events, or choose another protocol"
        )
    if config.evaluation.prior_weight is None and not _may_choose(split, config):
        raise ValueError(
            "evaluation.prior_weight is None but there are no valid rows to choose it "
            "by (log.fit_on is train+valid, or the log is too short): set it to what "
            "the run on the train period alone chose"
        )


def validation_ndcg(
    ranker: Ranker, among_U: npt.NDArray[np.bool_] | None = None
) -> Callable[[], float] | None:
    """NDCG@10 of the network alone on the valid rows; None where it must not look.

    A refit on train and valid has no rows left to choose by. All ranks call the result
    together and get the same figure.

    Args:
        among_U: bool [U], whose valid rows; None takes all that nothing learns from.
    """
    rows = _untaught(ranker)
    if among_U is not None:
        rows = rows.take(np.flatnonzero(among_U[rows.user_E]))
    if not len(rows) or not _may_choose(ranker.split, ranker.config):
        return None
    rows = _valid_rows(ranker, rows)
    return lambda: _ndcg(ranker, rows, (0.0,), 10)[0]


def choose_prior_weight(ranker: Ranker) -> float:
    """The mixture weight that ranks the valid rows best; all ranks call together.

    Raises:
        ValueError: see ``check_rows``. A refit learns from its valid rows: give it
            the weight of the run on the train period alone.
    """
    config = ranker.config
    if config.evaluation.prior_weight is not None:
        return config.evaluation.prior_weight
    check_rows(ranker.split, config)
    rows = _valid_rows(ranker, _untaught(ranker))
    scores = _ndcg(ranker, rows, PRIOR_WEIGHTS, CHOICE_DEPTH)
    return PRIOR_WEIGHTS[int(np.argmax(scores))]


def evaluate(
    ranker: Ranker,
    seconds: dict[str, float],
    baselines: Mapping[str, Baseline] = BASELINES,
    folder: str = EVALUATION,
) -> float:
    """Rank the test rows, beside the baselines, and write all figures.

    All ranks call together; the main rank writes.

    Args:
        ranker: the trained generator.
        seconds: wall time of each stage so far, for the report.
        baselines: whom to compare with, by name.
        folder: of the run, to write to.

    Returns:
        The weight of the evidence that was used.
    """
    config = ranker.config
    out = config.run_dir / folder
    chosen = sample_rows(
        ranker.split.test, config.evaluation.max_rows, config.evaluation.seed
    )
    rows = ranker.split.test.take(chosen)
    weight = choose_prior_weight(ranker)
    top, alone = ranker.top_items(rows, (weight, 0.0))
    found = [_found(GENERATOR, top.item_EW, rows)]
    if weight:
        found.append(_found(NETWORK_ALONE, alone.item_EW, rows))

    def write() -> None:
        if is_main_rank():
            systems = [*found, *_compared(ranker, rows, baselines)]
            _write(out, ranker, rows, chosen, systems, weight, seconds)
            _write_examples(out, ranker, rows, top.item_EW, top.score_EW)

    main_rank_first(write)
    return weight


def sample_rows(rows: EvalRows, max_rows: int, seed: int) -> Int64Array:
    """Row numbers, ascending: all, or a seeded sample stratified by user.

    Each user keeps the same share of rows: rows are ordered by user, then by hash, and
    taken at equal steps.
    """
    if len(rows) <= max_rows:
        return np.arange(len(rows))
    noise_E = hash64(seed, np.arange(len(rows)))
    order_E = np.lexsort((noise_E, rows.user_E))
    steps = np.linspace(0, len(rows) - 1, max_rows).astype(np.int64)
    return np.sort(order_E[steps])


def _may_choose(split: SplitLog, config: RunConfig) -> bool:
    return config.log.fit_on == "train" and len(split.valid) > 0


def _untaught(ranker: Ranker) -> EvalRows:
    """The valid rows that no stage learns from.

    Where post-training asks some, those of the users whom it does not ask.
    """
    rows, config = ranker.split.valid, ranker.config
    if not (config.align.num_steps and config.align.prompts == "fresh"):
        return rows
    is_label_U = is_label_user(ranker.split.user_ids, config.log.seed)
    return rows.take(np.flatnonzero(is_label_U[rows.user_E]))


def _valid_rows(ranker: Ranker, rows: EvalRows) -> EvalRows:
    config = ranker.config
    return rows.take(sample_rows(rows, config.evaluation.max_valid_rows, config.seed))


def _ndcg(
    ranker: Ranker, rows: EvalRows, prior_weights: tuple[float, ...], k: int
) -> list[float]:
    """NDCG@k by prior weight."""
    ranks = [
        target_ranks(top.item_EW, rows.target_E)
        for top in ranker.top_items(rows, prior_weights)
    ]
    return [float(metric_values(rank_E, (k,))[:, 1].mean()) for rank_E in ranks]


def _found(system: str, items_EK: Int32Array, rows: EvalRows) -> Found:
    return Found(
        system=system,
        items_EK=items_EK,
        rank_E=target_ranks(items_EK, rows.target_E),
    )


def _compared(
    ranker: Ranker, rows: EvalRows, baselines: Mapping[str, Baseline]
) -> list[Found]:
    config = ranker.config
    fitted = Fitted(
        split=ranker.split,
        graph=ranker.graph,
        config=config.graph,
        fit_on=config.log.fit_on,
        filter_seen=bool(config.log.filter_seen),
    )
    return [
        _found(system, recommend(fitted, rows, max(KS)), rows)
        for system, recommend in baselines.items()
        if not (system == OWN_HISTORY and fitted.filter_seen)
    ]


def _write(
    folder: Path,
    ranker: Ranker,
    rows: EvalRows,
    chosen: Int64Array,
    found: list[Found],
    weight: float,
    seconds: dict[str, float],
) -> None:
    paths = {one.system: hits_path(folder, one.system) for one in found}
    for one in found:
        write_hits(paths[one.system], ranker.split, rows, chosen, one.rank_E)
    vectors = tf_idf(item_texts(ranker.split.catalogue))
    systems = []
    for one in found:
        figures = _figures(one, rows, ranker, vectors)
        if one.system != GENERATOR:
            comparison = compare(paths[GENERATOR], paths[one.system])
            figures["p_vs_generator"] = {
                part.metric: part.p_value for part in comparison.differences
            }
        systems.append(figures)
    results: dict[str, object] = {
        "format_version": RESULTS_FORMAT,
        "protocol": ranker.split.protocol,
        "split": "test",
        "fit_on": ranker.config.log.fit_on,
        "rows": len(rows),
        "users": len(np.unique(rows.user_E)),
        "filter_seen": bool(ranker.config.log.filter_seen),
        "seed": ranker.config.seed,
        "prior_weight": weight,
        "systems": systems,
        "seconds": seconds,
    }
    plain = {name: without_nan(value) for name, value in results.items()}
    write_sealed(folder / RESULTS, plain)


def _figures(
    one: Found, rows: EvalRows, ranker: Ranker, vectors: Vectors
) -> dict[str, object]:
    popularity_N = ranker.graph.popularity_N
    table = ranking_table(one.rank_E, rows.user_E, seed=ranker.config.evaluation.seed)
    beyond = beyond_accuracy(one.items_EK, popularity_N, vectors)
    slices = {
        "cold": cold_rows(rows, popularity_N),
        "short": short_history_rows(rows),
    }
    figures: dict[str, object] = {
        "system": one.system,
        "metrics": table.metrics,
        "intervals": {name: list(pair) for name, pair in table.intervals.items()},
        "coverage": beyond.coverage,
        "novelty": beyond.novelty,
        "diversity": beyond.diversity,
    }
    for name, chosen_E in slices.items():
        part = slice_metrics(one.rank_E, chosen_E)
        figures[name] = {"rows": part.num_rows, **part.metrics}
    return figures


def _write_examples(
    folder: Path,
    ranker: Ranker,
    rows: EvalRows,
    items_EK: Int32Array,
    score_EK: Float32Array,
) -> None:
    picked = sample_rows(rows, NUM_EXAMPLES, ranker.config.evaluation.seed)
    examples = [
        _example(ranker, rows, int(row), items_EK[row], score_EK[row]) for row in picked
    ]
    write_sealed(folder / EXAMPLES, {"examples": examples})


def _example(
    ranker: Ranker, rows: EvalRows, row: int, items_K: Int32Array, score_K: Float32Array
) -> dict[str, object]:
    split = ranker.split
    titles = split.catalogue.titles
    target = int(rows.target_E[row])
    shown = [int(item) for item in items_K[:SHOWN_ITEMS] if item >= 0]
    return {
        "user_id": split.user_ids[rows.user_E[row]],
        "history": [
            resolve_entities(titles[item]) for item in _history(split, rows, row)
        ],
        "target": resolve_entities(titles[target]),
        "recommended": [
            {
                "title": resolve_entities(titles[item]),
                "score": float(score),
                "sid": ranker.tokens.codes_NL[item].tolist(),
                "hit": item == target,
            }
            for item, score in zip(shown, score_K, strict=False)
        ],
    }


def _history(split: SplitLog, rows: EvalRows, row: int) -> Int32Array:
    """The newest items that the row's history shows, oldest first."""
    first = split.sequences.offsets_U1[rows.user_E[row]]
    end = rows.history_end_E[row]
    start = max(rows.history_start_E[row], end - SHOWN_HISTORY)
    return split.sequences.items_R[first + start : first + end]


def without_nan(value: object) -> object:
    """JSON has no NaN: an average over nothing becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
