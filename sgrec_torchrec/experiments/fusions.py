"""Post-training under each fusion, from the same weights, prompts, steps and seeds.

Every arm of ``arms`` is tested against the pretrained model and against GRPO, users as
the unit.

The guard of post-training looks at the valid rows of the users that it asks. Valid
rows of the others (whom the judge learns from) are a third table: no arm's step was
chosen by them, unless fresh prompts leave the guard no other rows.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgrec_torchrec.a2po.align import align
from sgrec_torchrec.a2po.aligner import (
    Aligner,
    AlignState,
    build_aligner,
    check_rewards,
    made_of,
)
from sgrec_torchrec.a2po.reward import open_table
from sgrec_torchrec.config import RUNS, AlignConfig, RunConfig
from sgrec_torchrec.config.arguments import override
from sgrec_torchrec.distributed.launch import (
    Ranks,
    main_rank_first,
    process_group,
)
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evaluation.beyond import coverage
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.offline import (
    GENERATOR,
    NETWORK_ALONE,
    sample_rows,
    validation_ndcg,
)
from sgrec_torchrec.experiments.arm_metrics import arm_rows, write_arm
from sgrec_torchrec.experiments.arm_report import (
    HELD_OUT,
    LAST_STEP,
    SYSTEMS,
    rows_path,
    write_report,
)
from sgrec_torchrec.experiments.arms import ARMS, GRPO, PRETRAINED, chosen_arms, heard
from sgrec_torchrec.files.content_key import content_key, folder_key
from sgrec_torchrec.files.run_folder import (
    ALIGNED,
    ARM,
    BEST,
    METRICS,
    PRIOR_CHOICE,
)
from sgrec_torchrec.files.sealed_json import naming, without_seal, write_sealed
from sgrec_torchrec.files.tracking import read_metrics
from sgrec_torchrec.generator.pretrain import restore_best
from sgrec_torchrec.generator.trainee import Trainee
from sgrec_torchrec.logs.judged_users import is_label_user
from sgrec_torchrec.reward_table import RewardTable
from sgrec_torchrec.runs.open_run import open_run
from sgrec_torchrec.runs.prepare import prepare_log
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.schema import EvalRows, Int32Array, Int64Array, SplitLog
from sgrec_torchrec.train import run

DEFAULT_STEPS = 60
FORMAT = 1
"""Raise it when an arm's files change meaning: older arms are run again."""
SHARES = (
    *("in_table_share", "live_in_table", "missed_rollouts", "judged_share"),
    *("dead_share", "same_sign_share", "mean_lambda", "kl_mean"),
)
"""Means over an arm's steps that are reported; ``a2po.figures`` says what they are."""
JsonRow = dict[str, Any]


def benchmark_a2po(
    data: str,
    *,
    num_seeds: int,
    table: Path | None,
    json_path: Path | None,
    assignments: list[str],
    arms: Sequence[str] | None = None,
    resume: bool = False,
) -> list[JsonRow]:
    """Train what is not trained yet, run the arms, print the tables, write the JSON.

    Args:
        data: a name in ``RUNS``.
        table: reward table of the judge; None compares nothing but GRPO.
        arms: names in ``ARMS``; None takes all that the table allows.
        resume: leave out arms that are done, of the same weights, table and settings,
            and go on with one that was cut short.

    Returns:
        One row per (seed, arm, system).

    Raises:
        FileNotFoundError: where there is no such table.
        ValueError: for an unknown log, arm or setting, or a table of another log.
    """
    chosen = chosen_arms(data, arms, table)
    rows: list[JsonRow] = []
    done: list[tuple[str, RunConfig]] = []
    with process_group() as ranks:
        for seed in range(num_seeds):
            base = dataclasses.replace(
                override(RUNS[data], assignments),
                seed=seed,
                name=f"benchmark/{data}/train-{seed}",
            )
            settings = dataclasses.replace(
                base.align,
                # Post-training must ask for at least one step here.
                num_steps=base.align.num_steps or DEFAULT_STEPS,
                table=None if table is None else str(table),
            )
            pretrained = _restore(base, settings, ranks)
            for number, arm in enumerate(chosen, 1):
                config = _arm_config(pretrained, arm, settings)
                place = f"seed {seed}, arm {number} of {len(chosen)}, {arm}"
                if not (resume and (config.run_dir / ARM).is_file()):
                    _run_arm(pretrained, arm, config, place, resume=resume)
                elif is_main_rank():
                    print(f"{place}: done before, in {config.run_dir}")
                done.append((arm, config))
            if is_main_rank():
                facts = _facts(data, table, settings)
                rows = write_report(done, chosen, (PRETRAINED, GRPO), facts, json_path)
    return rows


def _facts(data: str, table: Path | None, settings: AlignConfig) -> JsonRow:
    """What the figures are of; folders by the sums of what they hold."""
    plain = dataclasses.asdict(settings)
    for name in ("table", "business_table"):
        plain[name] = None if plain[name] is None else folder_key(Path(plain[name]))
    judged = None if table is None else RewardTable.open(table).manifest.num_users
    return {"data": data, "align": plain, "judged_users": judged}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pretrained:
    """A run's best weights, ready to be post-trained or ranked."""

    trainee: Trainee
    ranker: Ranker
    guard: Callable[[], float] | None
    start_ndcg: float | None
    """What the guard says of these weights."""


def _restore(base: RunConfig, settings: AlignConfig, ranks: Ranks) -> _Pretrained:
    """The model that pretraining shipped, and all that an arm needs beside it."""
    plain = dataclasses.replace(
        base, align=dataclasses.replace(base.align, num_steps=0)
    )
    links = StageLinks(run_dir=plain.run_dir)
    split, config = main_rank_first(lambda: prepare_log(plain, links))
    check_rewards(split, dataclasses.replace(config, align=settings))
    # All arms rank with the mixture that the pretrained model chose.
    weight = _prior_weight(plain, ranks)
    evaluation = dataclasses.replace(plain.evaluation, prior_weight=weight)
    opened = open_run(dataclasses.replace(plain, evaluation=evaluation), ranks)
    ranker = opened.ranker()
    is_label_U = is_label_user(split.user_ids, config.log.seed)
    # Rows that an arm learns from cannot guard it.
    guards_U = is_label_U if settings.prompts == "fresh" else ~is_label_U
    guard = validation_ndcg(ranker, guards_U)
    return _Pretrained(
        trainee=opened.trainee,
        ranker=ranker,
        guard=guard,
        start_ndcg=guard() if guard else None,
    )


def _prior_weight(plain: RunConfig, ranks: Ranks) -> float:
    """Pretrain and evaluate, or read what that chose for the weights that are there."""
    without = dataclasses.replace(plain, align=AlignConfig())
    path = plain.run_dir / PRIOR_CHOICE

    def key() -> str:
        weights = made_of(plain.run_dir / BEST, AlignConfig())
        return content_key({"weights": weights, "run": without.of_training()})

    def known() -> float | None:
        if path.is_file():
            with naming(path, "delete it, and the run is evaluated again"):
                chosen = without_seal(json.loads(path.read_bytes()))
                weight, of = float(chosen["prior_weight"]), chosen["key"]
            if of == key():
                return weight
        return None

    weight = known()
    if weight is None:
        weight = run(plain, ranks, resume=True, baselines={}).prior_weight
        if is_main_rank():
            write_sealed(path, {"key": key(), "prior_weight": weight})
    return weight


def _arm_config(pretrained: _Pretrained, arm: str, settings: AlignConfig) -> RunConfig:
    """The arm's settings, in a folder that is named by all that its figures hang on."""
    plain, fusion = pretrained.trainee.config, ARMS[arm]
    if fusion is None:
        settings = dataclasses.replace(settings, num_steps=0)
    else:
        settings = dataclasses.replace(settings, fusion=fusion)
    facts = dataclasses.replace(plain, align=settings).of_training()
    for name in ("table", "business_table"):
        # Where a table lies does not matter: its sum is in made_of.
        del facts["align"][name]
    del facts["out_dir"]
    facts["format"] = FORMAT
    weights = made_of(pretrained.trainee.best, settings)
    key = content_key({"arm": arm, "made_of": weights, "run": facts})
    return dataclasses.replace(
        plain, align=settings, name=f"{plain.name}-{arm}-{key[:8]}"
    )


def _run_arm(
    pretrained: _Pretrained, arm: str, config: RunConfig, place: str, *, resume: bool
) -> None:
    """Post-train from the pretrained weights by one arm, and measure what ships."""
    began_s = time.perf_counter()
    restore_best(pretrained.trainee)
    guard, start = pretrained.guard, pretrained.start_ndcg
    state = AlignState(best_ndcg=-1.0 if start is None else start)
    aligner: Aligner | None = None
    if config.align.num_steps:
        trainee = dataclasses.replace(pretrained.trainee, config=config)
        ranker = pretrained.ranker
        aligner = build_aligner(trainee, ranker.split, ranker.tokens, ranker.ranks)
        semantic = heard(aligner.semantic, arm, config.seed)
        aligner = dataclasses.replace(aligner, semantic=semantic)
        state = align(aligner, guard, resume=resume, start_ndcg=start)
    aligned_s = time.perf_counter() - began_s
    systems = _measure(pretrained.ranker, config, aligner)
    if is_main_rank():
        seconds = {
            "align": aligned_s,
            "evaluate": time.perf_counter() - began_s - aligned_s,
        }
        results = {
            "made_of": made_of(pretrained.trainee.best, config.align),
            "best_step": state.best_step,
            "last_step": state.step,
            "has_collapsed": state.has_collapsed,
            "valid NDCG@10": None if start is None else state.best_ndcg,
            "shares": _shares(config),
            "systems": systems,
            "seconds": seconds,
        }
        write_sealed(config.run_dir / ARM, results)
        spent = ", ".join(f"{name} {part:.0f} s" for name, part in seconds.items())
        ndcg = systems[SYSTEMS[0]]["NDCG@10"]
        print(f"{place}: NDCG@10 {ndcg:.4f} of the network alone; {spent}")


def _measure(
    ranker: Ranker, config: RunConfig, aligner: Aligner | None
) -> dict[str, JsonRow]:
    """Rank test rows, and valid rows of users who were not asked; write their values.

    All ranks call together; only the main rank gets figures. Leaves the weights of the
    last step in the model.
    """
    split, settings = ranker.split, config.evaluation
    weight = settings.prior_weight or 0.0
    test_E = sample_rows(split.test, settings.max_rows, settings.seed)
    test = split.test.take(test_E)
    mixed, alone = ranker.top_items(test, (weight, 0.0))
    found = {NETWORK_ALONE: (test, test_E, alone), GENERATOR: (test, test_E, mixed)}
    is_label_U = is_label_user(split.user_ids, config.log.seed)
    valid_E = np.flatnonzero(is_label_U[split.valid.user_E])
    if len(valid_E) and config.log.fit_on == "train":
        valid_E = valid_E[
            sample_rows(
                split.valid.take(valid_E), settings.max_valid_rows, settings.seed
            )
        ]
        valid = split.valid.take(valid_E)
        found[HELD_OUT] = (valid, valid_E, ranker.top_items(valid, (0.0,))[0])
    last = alone
    if aligner is not None:
        aligner.keeper.load(aligner.keeper.newest)
        (last,) = ranker.top_items(test, (0.0,))
    found[LAST_STEP] = (test, test_E, last)
    if not is_main_rank():
        return {}
    table = open_table(config.align.table)
    return {
        system: _figures(config, system, (rows, row_E, top.item_EW), split, table)
        for system, (rows, row_E, top) in found.items()
    }


def _figures(
    config: RunConfig,
    system: str,
    found: tuple[EvalRows, Int64Array, Int32Array],
    split: SplitLog,
    table: RewardTable | None,
) -> JsonRow:
    rows, row_E, items_EW = found
    values = arm_rows(items_EW, rows, row_E, split, table)
    write_arm(rows_path(config.run_dir, system), values)
    share = coverage(items_EW[:, :10], split.sequences.num_items)
    return {**values.means(), "coverage": share, "rows": len(rows)}


def _shares(config: RunConfig) -> JsonRow:
    """Means over the steps; nothing of an arm without any."""
    path = config.run_dir / ALIGNED / METRICS
    if not config.align.num_steps:
        return {}
    steps = [line.values for line in read_metrics(path) if line.stage == "align"]
    means = {name: float(np.mean([one[name] for one in steps])) for name in SHARES}
    return {**means, "bound_violations": sum(one["bound_violations"] for one in steps)}
