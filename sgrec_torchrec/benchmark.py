"""One table for one log: the generator over several seeds, beside the baselines.

Runs the pipeline of ``train.py`` per seed on the train period alone, choosing by the
valid rows; where the protocol asks for it, once more on train and valid with the epochs
and the prior weight that the first run chose. Writes rows of figures as JSON.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sgrec_torchrec.arguments import override
from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.distributed.atomic import write_json
from sgrec_torchrec.distributed.launch import Ranks, is_main_rank, process_group
from sgrec_torchrec.distributed.origin import describe_run
from sgrec_torchrec.train import RunResult, run

REFITS = ("office",)
"""Logs whose published protocol learns from train and valid before the test."""
LOG_WIDTH = 170
SHOWN = ("HR@5", "NDCG@5", "HR@10", "NDCG@10")


def benchmark(
    data: str, *, num_seeds: int, json_path: Path | None, assignments: list[str]
) -> list[dict[str, object]]:
    """Run all seeds and protocols; print the table; write ``json_path``.

    Args:
        data: a name in ``RUNS``.
        num_seeds: seeds 0 .. num_seeds - 1.
        json_path: where the rows go; None writes none.
        assignments: ``stage.field=value`` overrides, for all runs.

    Returns:
        One row per (protocol, system, seed): its names and all metrics.

    Raises:
        ValueError: for an unknown log or setting.
    """
    if data not in RUNS:
        raise ValueError(f"unknown log {data!r}: choose one of {', '.join(RUNS)}")
    rows: list[dict[str, object]] = []
    with process_group() as ranks:
        for seed in range(num_seeds):
            base = override(RUNS[data], assignments)
            config = dataclasses.replace(
                base, seed=seed, name=f"benchmark/{data}/train-{seed}"
            )
            first = run(config, ranks)
            rows += _rows(data, "train", seed, config)
            if data in REFITS:
                refit = _refit(config, first, f"benchmark/{data}/train+valid-{seed}")
                run(refit, ranks)
                rows += _rows(data, "train+valid", seed, refit)
            _report(rows, json_path, ranks)
    return rows


def _refit(config: RunConfig, first: RunResult, name: str) -> RunConfig:
    """The same settings on train and valid, with what the first run chose."""
    return dataclasses.replace(
        config,
        name=name,
        log=dataclasses.replace(config.log, fit_on="train+valid"),
        pretrain=dataclasses.replace(
            config.pretrain, stop_after_epochs=first.best_epoch
        ),
        evaluation=dataclasses.replace(
            config.evaluation, prior_weight=first.prior_weight
        ),
    )


def _rows(
    data: str, fit_on: str, seed: int, config: RunConfig
) -> list[dict[str, object]]:
    if not is_main_rank():
        return []
    path = config.run_dir / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    return [
        {
            "data": data,
            "protocol": f"{results['protocol']}, fitted on {fit_on}",
            "system": system["system"],
            "seed": seed,
            **system["metrics"],
        }
        for system in results["systems"]
    ]


def _report(
    rows: list[dict[str, object]], json_path: Path | None, ranks: Ranks
) -> None:
    if not is_main_rank():
        return
    if json_path:
        write_json(
            json_path,
            {"meta": describe_run(), "world_size": ranks.world_size, "rows": rows},
        )
    # A log file has no width of its own; narrower, the figures would wrap.
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    console.print(_table(rows))


def _table(rows: list[dict[str, object]]) -> Table:
    """Median over seeds, with the range."""
    table = Table("protocol", "system", "seeds", *SHOWN)
    groups: dict[tuple[object, object], list[dict[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["protocol"], row["system"]), []).append(row)
    for (protocol, system), members in groups.items():
        cells = []
        for name in SHOWN:
            values = sorted(float(str(one[name])) for one in members)
            spread = f" [{values[0]:.4f}, {values[-1]:.4f}]" if len(values) > 1 else ""
            cells.append(f"{statistics.median(values):.4f}{spread}")
        table.add_row(str(protocol), str(system), str(len(members)), *cells)
    return table
