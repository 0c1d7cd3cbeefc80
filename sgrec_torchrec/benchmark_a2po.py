"""Post-training under each fusion, from the same weights, prompts, steps and seeds.

Arms: the pretrained model; the business reward alone (GRPO); Reward-Sum and Adv-Sum;
A2PO; and A2PO with a shuffled judge, whose rewards are given to other rollouts of their
group: what a judge's spread alone would do. All arms have the same judged mask. Every
arm is tested against the pretrained model and against GRPO, users as the unit.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sgrec_torchrec.a2po.align import align
from sgrec_torchrec.a2po.aligner import build_aligner
from sgrec_torchrec.a2po.reward import Group, SemanticReward
from sgrec_torchrec.arguments import override
from sgrec_torchrec.config import RUNS, RunConfig
from sgrec_torchrec.distributed.atomic import write_json
from sgrec_torchrec.distributed.launch import (
    Ranks,
    is_main_rank,
    main_rank_first,
    process_group,
)
from sgrec_torchrec.distributed.origin import describe_run
from sgrec_torchrec.distributed.tracking import Tracker
from sgrec_torchrec.evaluation.compare import compare_seeds, hits_path
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.offline import (
    GENERATOR,
    NETWORK_ALONE,
    evaluate,
    validation_ndcg,
)
from sgrec_torchrec.generator.pretrain import restore_best
from sgrec_torchrec.generator.trainee import Trainee, build_trainee
from sgrec_torchrec.logs.hashing import ROLLOUT, hash64
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS
from sgrec_torchrec.prepare import (
    prepare_evidence,
    prepare_graph,
    prepare_log,
    prepare_tokens,
)
from sgrec_torchrec.schema import ItemTokens, SplitLog
from sgrec_torchrec.train import run

PRETRAINED, GRPO, SHUFFLED = "pretrained", "grpo", "a2po, shuffled judge"
ARMS = {
    PRETRAINED: None,
    GRPO: "grpo",
    "reward-sum": "reward-sum",
    "adv-sum": "adv-sum",
    "a2po": "a2po",
    SHUFFLED: "a2po",
}
"""Arm -> its fusion."""
SYSTEMS = (GENERATOR, NETWORK_ALONE)
SHOWN = ("HR@10", "NDCG@10")
WIDTH = 160
DEFAULT_STEPS = 60
JsonRow = dict[str, Any]


def benchmark_a2po(
    data: str,
    *,
    num_seeds: int,
    table: Path | None,
    json_path: Path | None,
    assignments: list[str],
) -> list[JsonRow]:
    """Train what is not trained yet, run all arms, print the table, write the JSON.

    Args:
        data: a name in ``RUNS``.
        table: reward table of the judge; None compares nothing but GRPO.

    Returns:
        One row per (seed, arm, system).

    Raises:
        ValueError: for an unknown log or setting.
    """
    if data not in RUNS:
        raise ValueError(f"unknown log {data!r}: choose one of {', '.join(RUNS)}")
    arms = list(ARMS) if table is not None else [PRETRAINED, GRPO]
    rows: list[JsonRow] = []
    done: list[tuple[str, RunConfig]] = []
    with process_group() as ranks:
        for seed in range(num_seeds):
            base = override(RUNS[data], assignments)
            # Post-training must ask for at least one step here.
            steps = base.align.num_steps or DEFAULT_STEPS
            base = dataclasses.replace(
                base, seed=seed, name=f"benchmark/{data}/train-{seed}"
            )
            plain = dataclasses.replace(
                base, align=dataclasses.replace(base.align, num_steps=0)
            )
            run(plain, ranks, resume=True, baselines={})
            pretrained = _restore(plain, ranks)
            for arm in arms:
                done.append((arm, _run_arm(pretrained, arm, steps, table, ranks)))
            rows = [row for arm, config in done for row in _rows(arm, config)]
            _report(rows, _compared(done, arms), json_path)
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pretrained:
    """A run's best weights, ready to be post-trained or ranked."""

    trainee: Trainee
    ranker: Ranker
    split: SplitLog
    tokens: ItemTokens


def _restore(config: RunConfig, ranks: Ranks) -> _Pretrained:
    """The model that pretraining shipped, and all that an arm needs beside it."""
    # All arms rank with the mixture that the pretrained model chose.
    weight = _results(config)["prior_weight"]
    evaluation = dataclasses.replace(config.evaluation, prior_weight=weight)
    config = dataclasses.replace(config, evaluation=evaluation)
    split, config = main_rank_first(lambda: prepare_log(config))
    graph, config = main_rank_first(lambda: prepare_graph(split, config))
    evidence = main_rank_first(lambda: prepare_evidence(split, config))
    tokens = main_rank_first(lambda: prepare_tokens(split, graph, config))
    nothing = Tracker(config.run_dir, enabled=False)
    trainee = build_trainee(split, NO_SOFT_TARGETS, tokens, config, ranks, nothing)
    ranker = Ranker(
        dmp=trainee.dmp,
        split=split,
        tokens=tokens,
        graph=graph,
        evidence=evidence,
        config=config,
        ranks=ranks,
    )
    return _Pretrained(trainee=trainee, ranker=ranker, split=split, tokens=tokens)


def _run_arm(
    pretrained: _Pretrained, arm: str, steps: int, table: Path | None, ranks: Ranks
) -> RunConfig:
    """Post-train from the pretrained weights by one arm, and evaluate what ships."""
    restore_best(pretrained.trainee)
    plain, fusion = pretrained.trainee.config, ARMS[arm]
    name = f"{plain.name}-{arm.replace(', ', '-').replace(' ', '-')}"
    config = dataclasses.replace(plain, name=name)
    if fusion is not None:
        settings = dataclasses.replace(
            plain.align,
            num_steps=steps,
            fusion=fusion,
            table=None if table is None else str(table),
        )
        config = dataclasses.replace(config, align=settings)
        trainee = dataclasses.replace(pretrained.trainee, config=config)
        aligner = build_aligner(trainee, pretrained.split, pretrained.tokens, ranks)
        if arm == SHUFFLED:
            shuffled = _Shuffled(aligner.semantic, config.seed)
            aligner = dataclasses.replace(aligner, semantic=shuffled)
        align(aligner, validation_ndcg(pretrained.ranker), resume=False)
    evaluate(dataclasses.replace(pretrained.ranker, config=config), {}, {})
    return config


@dataclass(frozen=True, slots=True)
class _Shuffled:
    """A judge whose rewards go to other judged rollouts of the same group."""

    judged: SemanticReward
    seed: int

    def __call__(self, group: Group) -> tuple[Tensor, Tensor]:
        reward_BG, judged_BG = self.judged(group)
        mixed_BG = reward_BG.clone()
        for row, prompt in enumerate(group.prompt_B.tolist()):
            places = judged_BG[row].nonzero().squeeze(1)
            keys = hash64(self.seed, ROLLOUT, prompt, places.numpy())
            order = torch.from_numpy(keys.argsort(kind="stable"))
            # Turned by one place, so that no rollout keeps its own.
            mixed_BG[row, places[order]] = reward_BG[row, places[order.roll(1)]]
        return mixed_BG, judged_BG


def _rows(arm: str, config: RunConfig) -> list[JsonRow]:
    if not is_main_rank():
        return []
    results = _results(config)
    return [
        {
            "arm": arm,
            "seed": config.seed,
            "system": system["system"],
            "coverage": system["coverage"],
            **system["metrics"],
        }
        for system in results["systems"]
        if system["system"] in SYSTEMS
    ]


def _results(config: RunConfig) -> JsonRow:
    path = config.run_dir / "evaluation" / "results.json"
    results: JsonRow = json.loads(path.read_text(encoding="utf-8"))
    return results


def _compared(done: list[tuple[str, RunConfig]], arms: list[str]) -> list[JsonRow]:
    """Each arm against the pretrained model and GRPO, all seeds together."""
    if not is_main_rank():
        return []
    runs = {
        arm: [config.run_dir / "evaluation" for one, config in done if one == arm]
        for arm in arms
    }
    rows: list[JsonRow] = []
    for system in SYSTEMS:
        for against in (PRETRAINED, GRPO):
            for arm in arms:
                if arm in (PRETRAINED, against):
                    continue
                ours = [hits_path(folder, system) for folder in runs[arm]]
                theirs = [hits_path(folder, system) for folder in runs[against]]
                if not all(path.is_file() for path in (*ours, *theirs)):
                    continue
                rows += [
                    {
                        "system": system,
                        "arm": arm,
                        "against": against,
                        **dataclasses.asdict(part),
                    }
                    for part in compare_seeds(theirs, ours).differences
                    if part.metric in SHOWN
                ]
    return rows


def _report(
    rows: list[JsonRow], comparisons: list[JsonRow], json_path: Path | None
) -> None:
    if not is_main_rank():
        return
    if json_path:
        whole = {"meta": describe_run(), "rows": rows, "comparisons": comparisons}
        write_json(json_path, whole)
    console = Console(width=WIDTH)
    figures = Table("system", "arm", "seeds", *SHOWN, "coverage")
    for system in SYSTEMS:
        for arm in ARMS:
            some = [r for r in rows if (r["system"], r["arm"]) == (system, arm)]
            if some:
                means = [
                    f"{sum(one[name] for one in some) / len(some):.4f}"
                    for name in (*SHOWN, "coverage")
                ]
                figures.add_row(system, arm, str(len(some)), *means)
    console.print(figures)
    tests = Table("system", "arm", "against", "metric", "lead", "95 % interval", "p")
    for one in comparisons:
        tests.add_row(
            one["system"],
            one["arm"],
            one["against"],
            one["metric"],
            f"{one['difference']:+.4f}",
            f"[{one['low']:+.4f}, {one['high']:+.4f}]",
            f"{one['p_value']:.4f}",
        )
    console.print(tests)
