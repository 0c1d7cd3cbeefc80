"""Train and evaluate the generator: the whole pipeline, a step a line.

    python sgrec_torchrec/train.py
    torchrun --nproc-per-node 2 -- sgrec_torchrec/train.py --run movielens
    torchx run dist.ddp -j 2x8 sgrec_torchrec/train.py

Log -> item graph -> evidence -> item tokens -> sharded generator -> pretraining ->
post-training by A2PO (where ``align.num_steps`` asks for it) -> evaluation -> report.
Stages whose settings and inputs are unchanged are reused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sgrec_torchrec.a2po.align import align
from sgrec_torchrec.a2po.aligner import (
    build_aligner,
    check_aligned,
    check_rewards,
    restore_aligned,
)
from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import errors_in_one_line, parse_run
from sgrec_torchrec.distributed.launch import Ranks, process_group
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evaluation.baselines import BASELINES, Baseline
from sgrec_torchrec.evaluation.gain import write_gain
from sgrec_torchrec.evaluation.offline import check_rows, evaluate, validation_ndcg
from sgrec_torchrec.files.run_folder import EVALUATION_PRETRAINED
from sgrec_torchrec.files.tracking import Tracker
from sgrec_torchrec.generator.pretrain import pretrain, restore_best
from sgrec_torchrec.report.run_page import write_report
from sgrec_torchrec.runs.claim import Claim, IfThere, Use
from sgrec_torchrec.runs.disk import check_room_for_states
from sgrec_torchrec.runs.open_run import Prepared, build_run, prepare_run, write_config
from sgrec_torchrec.runs.stopwatch import Stopwatch
from sgrec_torchrec.schema import SplitLog


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, run the pipeline on all ranks.

    What a user can get wrong ends with one line and exit code 2; where there are
    several ranks, with the error of the rank that failed (``process_group``).
    """
    config, args = parse_run(argv)
    with errors_in_one_line("train.py"), process_group() as ranks:
        there: IfThere = "set aside" if args.overwrite else "refuse"
        run(config, ranks, resume=args.resume, if_there=there)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run chose on the valid rows: a refit takes it over."""

    best_epoch: int
    prior_weight: float


def run(
    config: RunConfig,
    ranks: Ranks,
    *,
    resume: bool = False,
    if_there: IfThere = "refuse",
    evaluate_only: bool = False,
    baselines: Mapping[str, Baseline] = BASELINES,
) -> RunResult:
    """The steps in order. All ranks call together; the main rank writes."""
    watch = Stopwatch()
    use: Use = "read" if evaluate_only else "go on" if resume else "begin"
    with Claim(use=use, if_there=if_there) as claim:
        made = prepare_run(
            config,
            watch,
            claim=claim,
            check=lambda split, known: check_log(split, known, claim),
            with_teacher=True,
        )
        return learn(made, ranks, watch, use, baselines)


def learn(
    made: Prepared,
    ranks: Ranks,
    watch: Stopwatch,
    use: Use,
    baselines: Mapping[str, Baseline],
) -> RunResult:
    """What comes after the data: the model, its figures, its page."""
    evaluate_only, resume = use == "read", use == "go on"
    split, tokens, config = made.split, made.tokens, made.config
    with Tracker(config.run_dir, enabled=is_main_rank()) as tracker:
        opened = build_run(made, ranks, tracker)
        trainee, ranker = opened.trainee, opened.ranker()
        validate = validation_ndcg(ranker)
        state = watch.together(
            "restore" if evaluate_only else "pretrain",
            lambda: (
                restore_best(trainee)
                if evaluate_only
                else pretrain(
                    trainee, validate, resume=resume, begun=lambda: write_config(made)
                )
            ),
        )
        if config.align.num_steps:
            aligner = build_aligner(trainee, split, tokens, ranks)
            watch.together(
                "evaluate pretrained",
                lambda: evaluate(ranker, {}, {}, EVALUATION_PRETRAINED),
            )
            watch.together(
                "restore" if evaluate_only else "align",
                lambda: (
                    restore_aligned(aligner)
                    if evaluate_only
                    else align(aligner, validate, resume=resume)
                ),
            )
        prior_weight = watch.together(
            "evaluate", lambda: evaluate(ranker, watch.seconds, baselines)
        )
    report(config)
    best_epoch = -(-state.best_step // trainee.stream.steps_per_epoch)
    return RunResult(best_epoch=best_epoch, prior_weight=prior_weight)


def check_log(split: SplitLog, config: RunConfig, claim: Claim) -> None:
    """Raise where evaluation or post-training could not follow, before any work."""
    check_rows(split, config)
    check_rewards(split, config)
    check_aligned(config, use=claim.use, keeps=claim.keeps)
    if claim.use != "read":
        check_room_for_states(split, config)


def report(config: RunConfig) -> None:
    """What post-training changed, where there was any, and the page."""
    if is_main_rank():
        if config.align.num_steps:
            write_gain(config.run_dir)
        print(f"report: {write_report(config.run_dir)}")


if __name__ == "__main__":
    main()
