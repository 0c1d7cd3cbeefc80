"""The files of finished arms -> tables on the screen and one JSON.

A mean is that of an arm's seeds, beside the lowest and the highest of them.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.evaluation.offline import GENERATOR, NETWORK_ALONE
from sgrec_torchrec.experiments.arm_metrics import METRICS, compare_arms
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.origin import describe_run
from sgrec_torchrec.files.run_folder import ARM
from sgrec_torchrec.files.sealed_json import naming, without_seal

HELD_OUT = "without evidence, valid rows of users not asked"
LAST_STEP = "without evidence, last step whatever the guard says"
SYSTEMS = (NETWORK_ALONE, GENERATOR, LAST_STEP, HELD_OUT)
"""All but the last on test rows. A guard that ships the pretrained model hides what an
arm's rewards did; the last step shows it."""
FIGURES = (*METRICS, "coverage")
GUARD = "valid NDCG@10"
SHOWN_SHARES = ("in_table_share", "live_in_table", "missed_rollouts", "mean_lambda")
WIDTH = 200
JsonRow = dict[str, Any]
Done = Sequence[tuple[str, RunConfig]]
"""(arm, its settings), seed by seed."""


def rows_path(run_dir: Path, system: str) -> Path:
    """Where an arm keeps what each row earned under a system."""
    name = system.replace(", ", "-").replace(" ", "-")
    return run_dir / f"rows-{name}.parquet"


def write_report(
    done: Done,
    arms: Sequence[str],
    against: Sequence[str],
    facts: JsonRow,
    json_path: Path | None,
) -> list[JsonRow]:
    """Test the arms, print the tables, write the JSON; call it on one rank.

    Args:
        arms: in the order of the tables.
        against: those of them that every other is tested against.
        facts: what the figures are of, for the JSON.

    Returns:
        One row per (arm, seed, system).

    Raises:
        FileNotFoundError, ValueError: as ``compare_arms``.
    """
    results = [(arm, config, _results(config)) for arm, config in done]
    rows = [
        {"arm": arm, "seed": config.seed, "system": system, **figures}
        for arm, config, one in results
        for system, figures in one["systems"].items()
    ]
    runs = [
        {"arm": arm, "seed": config.seed}
        | {name: value for name, value in one.items() if name != "systems"}
        for arm, config, one in results
    ]
    comparisons = _compared(done, arms, [name for name in against if name in arms])
    if json_path:
        parts = {"rows": rows, "runs": runs, "comparisons": comparisons}
        write_json(json_path, {"meta": describe_run(), **facts, **parts})
    console = Console(width=WIDTH)
    console.print(_figures(rows, arms))
    console.print(_guards(runs, arms))
    console.print(_tests(comparisons))
    return rows


def _results(config: RunConfig) -> JsonRow:
    path = config.run_dir / ARM
    with naming(path, "delete it, and the arm is measured again"):
        results: JsonRow = without_seal(json.loads(path.read_bytes()))
    return results


def _compared(done: Done, arms: Sequence[str], against: Sequence[str]) -> list[JsonRow]:
    """Each arm against each of ``against``, all seeds together."""
    folders = {arm: [c.run_dir for one, c in done if one == arm] for arm in arms}
    rows: list[JsonRow] = []
    for system in SYSTEMS:
        paths = {
            arm: [rows_path(folder, system) for folder in folders[arm]] for arm in arms
        }
        for other in against:
            for arm in arms:
                both = (*paths[other], *paths[arm])
                # The pretrained model leads nobody: it is what the others are led by.
                if arm in (other, against[0]) or not all(p.is_file() for p in both):
                    continue
                rows += [
                    {"system": system, "arm": arm, "against": other}
                    | dataclasses.asdict(part)
                    for part in compare_arms(paths[other], paths[arm])
                ]
    return rows


def spread(values: Sequence[float | None], digits: int = 4) -> str:
    """Mean, and of several the lowest and the highest; "-" where nothing is known.

    >>> spread([0.25, None, 0.75], 2)
    '0.50 [0.25, 0.75]'
    """
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{sum(known) / len(known):.{digits}f}"
    if len(known) == 1:
        return mean
    return f"{mean} [{min(known):.{digits}f}, {max(known):.{digits}f}]"


def _figures(rows: list[JsonRow], arms: Sequence[str]) -> Table:
    table = Table("system", "arm", "seeds", *FIGURES)
    for system in SYSTEMS:
        for arm in arms:
            some = [r for r in rows if (r["system"], r["arm"]) == (system, arm)]
            if some:
                cells = [spread([one[name] for one in some]) for name in FIGURES]
                table.add_row(system, arm, str(len(some)), *cells)
    return table


def _guards(runs: list[JsonRow], arms: Sequence[str]) -> Table:
    """What the guard saw and shipped, and how much the judge had to say."""
    shares = [name.replace("_", " ") for name in SHOWN_SHARES]
    table = Table("arm", GUARD, "step that ships", *shares, "seconds")
    for arm in arms:
        some = [one for one in runs if one["arm"] == arm]
        cells = [
            spread([one["shares"].get(name) for one in some], 3)
            for name in SHOWN_SHARES
        ]
        steps = ", ".join(f"{one['best_step']}" for one in some)
        seconds = spread([sum(one["seconds"].values()) for one in some], 0)
        guard = spread([one[GUARD] for one in some])
        table.add_row(arm, guard, steps, *cells, seconds)
    return table


def _tests(comparisons: list[JsonRow]) -> Table:
    table = Table("system", "arm", "against", "metric", "lead", "95 % interval", "p")
    for one in comparisons:
        table.add_row(
            one["system"],
            one["arm"],
            one["against"],
            one["metric"],
            f"{one['difference']:+.4f}",
            f"[{one['low']:+.4f}, {one['high']:+.4f}]",
            f"{one['p_value']:.4f}",
        )
    return table
