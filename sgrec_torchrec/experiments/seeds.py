"""One table for one log: the generator over several seeds, beside the baselines.

Runs the pipeline of ``train.py`` per seed on the train period alone, choosing by the
valid rows; where the protocol asks for it, once more on train and valid with the epochs
and the evidence's weight that the first run chose. Then all seeds of the generator are
tested against all seeds of each baseline on the same rows. Writes everything as JSON.
"""

import dataclasses
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.config.arguments import override
from sgrec_torchrec.distributed.launch import Ranks, process_group
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evaluation.baselines import BASELINES
from sgrec_torchrec.evaluation.compare import compare_seeds, hits_path
from sgrec_torchrec.evaluation.offline import GENERATOR
from sgrec_torchrec.experiments.sequential_peer import SYSTEM, TUNED, SequentialPeer
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.origin import describe_run
from sgrec_torchrec.files.run_folder import EVALUATION, RESULTS
from sgrec_torchrec.files.sealed_json import without_seal
from sgrec_torchrec.train import RunResult, run

REFITS = ("office",)
"""Logs whose published protocol learns from train and valid before the test."""
LOG_WIDTH = 260
SHOWN = ("HR@5", "NDCG@5", "HR@10", "NDCG@10")
SLICES = ("cold", "short")
"""Targets without a train event; histories of at most 5 events."""
SLICE_METRIC = "HR@10"
HEADLINE = "NDCG@10"
JsonRow = dict[str, Any]


def benchmark(
    data: str,
    *,
    num_seeds: int,
    json_path: Path | None,
    assignments: list[str],
    num_peer_seeds: int = 0,
    tune_minutes: float = 10.0,
    resume: bool = False,
) -> list[JsonRow]:
    """Run all seeds and protocols; print the table; write ``json_path``.

    Args:
        data: a name in ``RUNS``.
        num_seeds: seeds 0 .. num_seeds - 1.
        json_path: where everything goes; None writes nothing.
        assignments: ``stage.field=value`` overrides, for all runs.
        num_peer_seeds: with how many of the seeds the self-attentive peer is trained.
        tune_minutes: how long it may search for its settings, once.
        resume: go on from the checkpoints of an earlier call; a seed that is trained
            already is only evaluated.

    Returns:
        One row per (protocol, system, seed): its names, all metrics, slices, seconds.

    Raises:
        ValueError: for an unknown log or setting.
    """
    if data not in RUNS:
        raise ValueError(f"unknown log {data!r}: choose one of {', '.join(RUNS)}")
    rows: list[JsonRow] = []
    done: list[RunConfig] = []
    with process_group() as ranks:
        for seed in range(num_seeds):
            base = override(RUNS[data], assignments)
            config = dataclasses.replace(
                base, seed=seed, name=f"benchmark/{data}/train-{seed}"
            )
            measured = partial(
                _run, ranks=ranks, resume=resume, tune_minutes=tune_minutes
            )
            has_peer = seed < num_peer_seeds
            first = measured(config, has_peer=has_peer)
            done.append(config)
            if data in REFITS:
                refit = _refit(config, first, f"benchmark/{data}/train+valid-{seed}")
                measured(refit, has_peer=has_peer)
                done.append(refit)
            rows = [row for config in done for row in _rows(data, config)]
            _report(rows, _compared(done), json_path, ranks)
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


def _run(
    config: RunConfig,
    ranks: Ranks,
    *,
    resume: bool,
    has_peer: bool,
    tune_minutes: float,
) -> RunResult:
    # These have no seed: one run has their figures for all.
    baselines = dict(BASELINES) if config.seed == 0 else {}
    if has_peer:
        exchange = config.run_dir.parent / "sasrec"
        if not resume and config.seed == 0 and config.log.fit_on == "train":
            (exchange / "train" / TUNED).unlink(missing_ok=True)
        baselines[SYSTEM] = SequentialPeer(
            folder=exchange / config.log.fit_on,
            tuned_in=exchange / "train",
            seed=config.seed,
            max_history=config.log.max_history,
            tune_minutes=tune_minutes,
        )
    # A benchmark's runs are its own: without --resume it measures anew.
    return run(config, ranks, resume=resume, if_there="replace", baselines=baselines)


def _rows(data: str, config: RunConfig) -> list[JsonRow]:
    if not is_main_rank():
        return []
    results = _results(config)
    return [
        {
            "data": data,
            "protocol": _protocol(config),
            "system": system["system"],
            "seed": config.seed,
            "prior_weight": results["prior_weight"],
            "seconds": results["seconds"],
            "slices": {name: system[name] for name in SLICES},
            "intervals": system["intervals"],
            **system["metrics"],
        }
        for system in results["systems"]
    ]


def _results(config: RunConfig) -> dict[str, Any]:
    path = config.run_dir / EVALUATION / RESULTS
    results: dict[str, Any] = without_seal(json.loads(path.read_text(encoding="utf-8")))
    return results


def _protocol(config: RunConfig) -> str:
    return f"{config.log.protocol}, fitted on {config.log.fit_on}"


def _compared(done: list[RunConfig]) -> list[JsonRow]:
    """The generator against every other system, all seeds of both together."""
    if not is_main_rank():
        return []
    runs: dict[tuple[str, str], list[Path]] = {}
    for config in done:
        folder = config.run_dir / EVALUATION
        for system in _results(config)["systems"]:
            key = (_protocol(config), system["system"])
            runs.setdefault(key, []).append(hits_path(folder, system["system"]))
    rows: list[JsonRow] = []
    for (protocol, system), theirs in runs.items():
        if system != GENERATOR:
            differences = compare_seeds(theirs, runs[protocol, GENERATOR]).differences
            rows += [
                {"protocol": protocol, "against": system, **dataclasses.asdict(part)}
                for part in differences
            ]
    return rows


def _report(
    rows: list[JsonRow],
    comparisons: list[JsonRow],
    json_path: Path | None,
    ranks: Ranks,
) -> None:
    if not is_main_rank():
        return
    if json_path:
        whole = {
            "meta": describe_run(),
            "world_size": ranks.world_size,
            "rows": rows,
            "comparisons": comparisons,
        }
        write_json(json_path, whole)
    # A log file has no width of its own; narrower, the figures would wrap.
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    console.print(_table(rows))
    console.print(_comparison_table(comparisons))


def _table(rows: list[JsonRow]) -> Table:
    """Median over seeds, with the range; what a cold item and a short history get."""
    slices = [f"{name} {SLICE_METRIC}" for name in SLICES]
    table = Table("protocol", "system", "seeds", *SHOWN, *slices, "train min")
    groups: dict[tuple[object, object], list[JsonRow]] = {}
    for row in rows:
        groups.setdefault((row["protocol"], row["system"]), []).append(row)
    for (protocol, system), members in groups.items():
        cells = [_spread([one[name] for one in members]) for name in SHOWN]
        for name in SLICES:
            parts = [one["slices"][name] for one in members]
            cells.append(_spread([part[SLICE_METRIC] for part in parts]))
        seconds = [sum(one["seconds"].values()) for one in members]
        minutes = f"{max(seconds) / 60:.1f}" if system == GENERATOR else ""
        table.add_row(str(protocol), str(system), str(len(members)), *cells, minutes)
    return table


def _spread(values: list[object]) -> str:
    """The median of those that are there, and the range of several."""
    known = sorted(float(str(value)) for value in values if value is not None)
    if not known:
        return ""
    spread = f" [{known[0]:.4f}, {known[-1]:.4f}]" if len(known) > 1 else ""
    return f"{statistics.median(known):.4f}{spread}"


def _comparison_table(comparisons: list[JsonRow]) -> Table:
    """The generator's lead over each system: mean over seeds, paired over users."""
    table = Table("protocol", "against", f"{HEADLINE} lead", "95 % interval", "p")
    for row in comparisons:
        if row["metric"] != HEADLINE:
            continue
        lead, theirs = row["difference"], row["value_a"]
        percent = f" ({100 * lead / theirs:+.1f} %)" if theirs else ""
        table.add_row(
            str(row["protocol"]),
            str(row["against"]),
            f"{lead:+.4f}{percent}",
            f"[{row['low']:+.4f}, {row['high']:+.4f}]",
            f"{row['p_value']:.4f}",
        )
    return table
