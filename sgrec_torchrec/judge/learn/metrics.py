"""How good a judge is, on users that it has learned nothing of.

Letters: C candidates of a case, A aspects, S levels, P pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.judge.ask.aspects import LEVELS, Aspect, expected_score
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.learn.labels import LabelledCase
from sgrec_torchrec.schema import Float32Array

NUM_BINS = 10
NUM_RESAMPLES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the judge said of a labelled case."""

    case: LabelledCase
    probability_CAS: Float32Array
    weight_A: Float32Array
    """Importance of the aspects to the user, sum 1."""

    @property
    def score_CA(self) -> Float32Array:
        """Mean levels in [0, 1]."""
        return expected_score(self.probability_CAS)

    @property
    def reward_C(self) -> Float32Array:
        """w(x) . s(x, a): S-GRec's holistic score."""
        reward: Float32Array = self.score_CA @ self.weight_A
        return reward


def measure(
    judged: Sequence[Judged], aspects: tuple[Aspect, ...], seed: int = 0
) -> dict[str, Any]:
    """Point accuracy, confusion, calibration, pair AUC and trade-off share."""
    probability = np.concatenate([one.probability_CAS for one in judged])
    label = np.concatenate([one.case.levels_CA for one in judged]).astype(np.int64) - 1
    said = probability.argmax(-1)
    by_aspect = {
        aspect.name: {
            **_of_aspect(probability[:, nth], label[:, nth]),
            "pair_auc": pair_auc(judged, partial(_score_of, nth))["all"],
        }
        for nth, aspect in enumerate(aspects)
    }
    return {
        "candidates": len(label),
        "users": len({one.case.case.user for one in judged}),
        "point_accuracy": float((said == label).mean()),
        "by_aspect": by_aspect,
        "pair_auc": pair_auc(judged, lambda one: one.reward_C),
        "pair_auc_interval": auc_interval(judged, lambda one: one.reward_C, seed),
        "trade_off_share": trade_off_share(judged),
    }


def _of_aspect(
    probability_NS: Float32Array, label_N: npt.NDArray[np.int64]
) -> dict[str, Any]:
    said_N = probability_NS.argmax(-1)
    return {
        "accuracy": float((said_N == label_N).mean()),
        "mean_distance": float(np.abs(said_N - label_N).mean()),
        "kappa": quadratic_kappa(said_N, label_N),
        "calibration_error": calibration_error(probability_NS, label_N),
        "confusion": confusion(said_N, label_N).tolist(),
    }


def _score_of(nth: int, one: Judged) -> Float32Array:
    score: Float32Array = one.score_CA[:, nth]
    return score


def pair_auc(
    judged: Sequence[Judged], score: Callable[[Judged], npt.NDArray[Any]]
) -> dict[str, float]:
    """Share of preferences that the score agrees with, a tie as one half.

    ``all``, and apart by the source of the item that was not preferred.
    """
    won: dict[str, list[float]] = {"all": []}
    for one in judged:
        for source, win in _wins(one, score):
            won["all"].append(win)
            won.setdefault(source, []).append(win)
    return {name: float(np.mean(wins)) for name, wins in won.items() if wins}


def auc_interval(
    judged: Sequence[Judged],
    score: Callable[[Judged], npt.NDArray[Any]],
    seed: int = 0,
    other: Callable[[Judged], npt.NDArray[Any]] | None = None,
) -> tuple[float, float]:
    """95 % bootstrap interval of the pair AUC, users drawn whole.

    With ``other``, of the difference to the AUC of that score, paired by user.
    """
    users: dict[int, list[float]] = {}
    for one in judged:
        wins = [win for _, win in _wins(one, score)]
        if other is not None:
            rival = [win for _, win in _wins(one, other)]
            wins = [a - b for a, b in zip(wins, rival, strict=True)]
        users.setdefault(one.case.case.user, []).extend(wins)
    total = np.array([sum(wins) for wins in users.values()])
    count = np.array([len(wins) for wins in users.values()])
    noise = np.random.default_rng(seed)
    drawn = noise.integers(0, len(total), (NUM_RESAMPLES, len(total)))
    values = total[drawn].sum(1) / np.maximum(count[drawn].sum(1), 1)
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _wins(
    one: Judged, score: Callable[[Judged], npt.NDArray[Any]]
) -> list[tuple[str, float]]:
    score_C = score(one)
    wins = []
    for pair in one.case.preferences:
        gap = float(score_C[pair.better]) - float(score_C[pair.worse])
        wins.append((one.case.sources[pair.worse], 0.5 + 0.5 * float(np.sign(gap))))
    return wins


def trade_off_share(judged: Sequence[Judged]) -> float:
    """Share of the pairs where neither candidate is at least as good in all aspects.

    Only these can teach weights: of any others every weighting says the same.
    """
    open_pairs = [
        is_trade_off(one.score_CA, pair.better, pair.worse)
        for one in judged
        for pair in one.case.preferences
    ]
    return float(np.mean(open_pairs)) if open_pairs else 0.0


def is_trade_off(score_CA: Float32Array, better: int, worse: int) -> bool:
    """Does each of the two win in some aspect?"""
    gap_A = score_CA[better] - score_CA[worse]
    return bool((gap_A > 0).any() and (gap_A < 0).any())


def confusion(said: npt.NDArray[np.int64], label: npt.NDArray[np.int64]) -> Any:
    """int64 [S, S]: rows are labels, columns what was said."""
    table = np.zeros((len(LEVELS), len(LEVELS)), dtype=np.int64)
    np.add.at(table, (label, said), 1)
    return table


def quadratic_kappa(
    said: npt.NDArray[np.int64], label: npt.NDArray[np.int64]
) -> float | None:
    """Cohen's kappa with weights (i - j)^2; None where both are constant."""
    table = confusion(said, label).astype(np.float64)
    level = np.arange(len(LEVELS))
    cost = (level[:, None] - level) ** 2
    chance = table.sum(1)[:, None] * table.sum(0) / max(table.sum(), 1)
    expected = float((cost * chance).sum())
    return None if expected == 0 else 1.0 - float((cost * table).sum()) / expected


def calibration_error(
    probability_NS: Float32Array, label_N: npt.NDArray[np.int64]
) -> float:
    """Expected calibration error of the likeliest level, in ten equal bins.

    Guo et al. 2017 (arXiv 1706.04599), eq. 3.
    """
    confidence = probability_NS.max(-1)
    is_right = probability_NS.argmax(-1) == label_N
    place = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gap = np.bincount(place, is_right - confidence, NUM_BINS)
    return float(np.abs(gap).sum() / len(label_N))


def baseline_aucs(
    judged: Sequence[Judged],
    baselines: Mapping[str, Callable[[Judged], npt.NDArray[Any]]],
    seed: int = 0,
) -> dict[str, Any]:
    """Pair AUC of other scores on the same pairs, and the judge's lead over each."""
    return {
        name: {
            "pair_auc": pair_auc(judged, score),
            "lead_interval": auc_interval(
                judged, lambda one: one.reward_C, seed, other=score
            ),
        }
        for name, score in baselines.items()
    }


def baseline_scores(reader: CaseReader) -> dict[str, Callable[[Judged], Float32Array]]:
    """What a judge must beat on pairs: popularity, likeness of texts, joint choices.

    Name -> score float32 [C] of a case's candidates; chance is .5 by itself.
    """

    def popularity(judged: Judged) -> Float32Array:
        case = judged.case.case
        counts = [
            reader.popularity(item, case.request_timestamp) for item in case.items
        ]
        return np.array(counts, dtype=np.float32)

    def cosine(judged: Judged) -> Float32Array:
        case = judged.case.case
        past = reader.history(case)[0]
        return reader.grader.likeness(case.items, past).newest_C

    def together(judged: Judged) -> Float32Array:
        return np.array(reader.together(judged.case.case), dtype=np.float32)

    return {
        "popularity": popularity,
        "text cosine": cosine,
        "chosen together": together,
    }
