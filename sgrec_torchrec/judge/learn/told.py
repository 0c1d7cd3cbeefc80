"""What training added, and how far labels agree, as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.learn.labels import LabelledCase
from sgrec_torchrec.judge.learn.metrics import quadratic_kappa

WIDTH = 180


def print_table(table: Table) -> None:
    """On a terminal in its width, into a file in a fixed one."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def report_tables(report: dict[str, Any]) -> list[Table]:
    """Stages with accuracy, calibration and pair AUC; then what they must beat."""
    names = list(next(iter(report["stages"].values()))["by_aspect"])
    stages = Table(
        "stage",
        "accuracy",
        *(f"{name} (kappa)" for name in names),
        "calibration error",
        "pair AUC",
        "95 % interval",
        "trade-off pairs",
    )
    for name, figures in report["stages"].items():
        by_aspect = figures["by_aspect"].values()
        error = np.mean([one["calibration_error"] for one in by_aspect])
        low, high = figures["pair_auc_interval"]
        stages.add_row(
            name,
            f"{figures['point_accuracy']:.4f}",
            *(_accuracy(one) for one in by_aspect),
            f"{error:.4f}",
            _aucs(figures["pair_auc"]),
            f"[{low:.3f}, {high:.3f}]",
            f"{figures['trade_off_share']:.1%}",
        )
    rivals = Table("against", "pair AUC", "the judge's lead, 95 % interval")
    rivals.add_row("chance", "0.5000", "")
    for name, figures in report["baselines"].items():
        low, high = figures["lead_interval"]
        rivals.add_row(name, _aucs(figures["pair_auc"]), f"[{low:+.3f}, {high:+.3f}]")
    weights = Table("mean weight of", *names)
    weights.add_row("", *(f"{report['mean_weights'][name]:.3f}" for name in names))
    return [stages, rivals, weights]


def agreement_table(
    ours: Sequence[LabelledCase], theirs: Sequence[LabelledCase], reader: CaseReader
) -> Table:
    """How far two sets of labels agree where both speak of the same candidate.

    Raises:
        ValueError: where they share no candidate.
    """
    said = {
        (one.case.user, one.case.as_of, item): one.levels_CA[place]
        for one in theirs
        for place, item in enumerate(one.case.items)
    }
    both = [
        (one.levels_CA[place], said[one.case.user, one.case.as_of, item])
        for one in ours
        for place, item in enumerate(one.case.items)
        if (one.case.user, one.case.as_of, item) in said
    ]
    if not both:
        raise ValueError("the two sets of labels share no user, time and item")
    ours_NA = np.array([a for a, _ in both], dtype=np.int64) - 1
    theirs_NA = np.array([b for _, b in both], dtype=np.int64) - 1
    table = Table("aspect", "candidates", "same level", "within one", "kappa")
    for nth, aspect in enumerate(reader.aspects):
        gap = np.abs(ours_NA[:, nth] - theirs_NA[:, nth])
        kappa = quadratic_kappa(ours_NA[:, nth], theirs_NA[:, nth])
        table.add_row(
            aspect.name,
            str(len(both)),
            f"{(gap == 0).mean():.3f}",
            f"{(gap <= 1).mean():.3f}",
            "" if kappa is None else f"{kappa:.3f}",
        )
    return table


def _accuracy(figures: dict[str, Any]) -> str:
    kappa = figures["kappa"]
    return f"{figures['accuracy']:.3f}" + ("" if kappa is None else f" ({kappa:.2f})")


def _aucs(figures: dict[str, float]) -> str:
    parts = [f"{name} {value:.3f}" for name, value in figures.items() if name != "all"]
    return f"{figures['all']:.4f}" + (f" ({', '.join(parts)})" if parts else "")
