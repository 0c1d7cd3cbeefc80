"""``sgrec judge``: one short function per verb; stages are imported inside them."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.config.listing import listing
from sgrec_torchrec.config.options import option, settings_of
from sgrec_torchrec.config.registry import JUDGE_BACKENDS
from sgrec_torchrec.distributed.choose_executor import PROCESSES, RAY
from sgrec_torchrec.files.run_folder import (
    CANDIDATES,
    GRAPH,
    JUDGE,
    JUDGED,
    LABELS,
    SPLIT,
)

if TYPE_CHECKING:
    from sgrec_torchrec.judge.ask.cases import CaseReader
    from sgrec_torchrec.judge.asking import Asking
    from sgrec_torchrec.judge.in_parts import Places

app = typer.Typer(
    help="Judge candidates by a language model, offline: label, train, run, page.",
    no_args_is_help=True,
)
RunDir = Annotated[Path, typer.Argument(help="Folder of a run, as runs/movielens.")]
Model = Annotated[
    str | None,
    option("judge.model", "Hugging Face folder or name; else the packaged SmolLM2."),
]

Bf16 = Annotated[
    bool | None,
    option("judge.bf16", "bfloat16: twice as fast on a CPU with AVX512 BF16 or AMX."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="judge.FIELD=VALUE",
        help="Override one setting of the run; other options go before it.",
    ),
]
Price = Annotated[
    float, typer.Option(help="Of the machine, or of a worker's share of it.", min=0)
]
NumWorkers = Annotated[
    int | None,
    typer.Option(help="Processes that share the users out; each holds the model."),
]
ExecutorName = Annotated[
    str, typer.Option(help=f"{PROCESSES}, or {RAY}: workers of a cluster.")
]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, as host:6379 or auto.")
]
Gpus = Annotated[float, typer.Option(help="Of Ray, for each worker.", min=0)]
UsersPerPart = Annotated[
    int, typer.Option(help="Users that a worker judges at a time.", min=1)
]


@app.command()
def label(
    run_dir: RunDir,
    out: Annotated[Path | None, typer.Option(help="Else RUN/labels.")] = None,
    cases_per_user: Annotated[
        int | None, option("judge.cases_per_user", "Cases of a label user.", least=1)
    ] = None,
    max_cases: Annotated[
        int | None,
        option(
            "judge.max_cases", "About so many in all: training takes seconds a case."
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Labels to report the agreement with.")
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Make weak labels from the behaviour of users that post-training leaves out."""
    from sgrec_torchrec.item_graph.graph import ItemGraph
    from sgrec_torchrec.judge.learn.labels import read_labels, write_labels
    from sgrec_torchrec.judge.learn.told import agreement_table, print_table
    from sgrec_torchrec.judge.learn.weak_labels import weak_labels

    config = settings_of(
        run_dir,
        "judge",
        assignments,
        cases_per_user=cases_per_user,
        max_cases=max_cases,
    )
    reader = _reader(run_dir, config.judge)
    graph = ItemGraph.load(run_dir / GRAPH)
    # Read first: a wrong one must not cost the labels that are there.
    other = None if compare is None else read_labels(compare, reader)
    made = weak_labels(reader, graph, config.judge, config.log.seed)
    folder = out or run_dir / LABELS
    write_labels(made, reader, folder)
    typer.echo(f"{len(made)} cases: {folder}")
    if other is not None:
        print_table(agreement_table(made, other, reader))


@app.command()
def train(
    run_dir: RunDir,
    labels: Annotated[Path | None, typer.Option(help="Else RUN/labels.")] = None,
    out: Annotated[Path | None, typer.Option(help="Else RUN/judge.")] = None,
    model: Model = None,
    max_history: Annotated[
        int | None, option("judge.max_history", "Titles a prompt shows.")
    ] = None,
    sft_epochs: Annotated[
        float | None, option("judge.sft_epochs", "Of supervision.")
    ] = None,
    sft_updates: Annotated[
        int | None,
        option("judge.sft_updates", "Of supervision at most, 4 to 8 s each.", least=1),
    ] = None,
    grpo_steps: Annotated[
        int | None, option("judge.grpo_steps", "Updates of GRPO after that.")
    ] = None,
    bf16: Bf16 = None,
    max_held_out: Annotated[
        int | None,
        option("judge.max_held_out", "Cases that every stage is measured on."),
    ] = None,
    max_weight_cases: Annotated[
        int | None,
        option("judge.max_weight_cases", "Cases that the weights are learned from."),
    ] = None,
    form: Annotated[
        str | None,
        option("judge.form", "How users weigh aspects: network, or llm (slower)."),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Train the judge: supervised, then GRPO, then the weights; report each stage."""
    settings = settings_of(
        run_dir,
        "judge",
        assignments,
        model=model,
        max_history=max_history,
        sft_epochs=sft_epochs,
        sft_updates=sft_updates,
        grpo_steps=grpo_steps,
        bf16=bf16,
        max_held_out=max_held_out,
        max_weight_cases=max_weight_cases,
        form=form,
    ).judge
    _train(run_dir, settings, labels or run_dir / LABELS, out or run_dir / JUDGE)


@app.command(cls=listing(JUDGE_BACKENDS))
def run(
    run_dir: RunDir,
    judge: Annotated[Path | None, typer.Option(help="Else RUN/judge.")] = None,
    candidates: Annotated[
        Path | None, typer.Option(help="Else RUN/candidates.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Judge these pairs instead: what training missed."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Else RUN/judged.")] = None,
    backend: Annotated[
        str, typer.Option(help=f"{', '.join(JUDGE_BACKENDS.built_in)}.")
    ] = "transformers",
    url: Annotated[
        str | None, typer.Option(help="openai: the server's address.")
    ] = None,
    bf16: Bf16 = None,
    written: Annotated[
        int | None,
        option(
            "judge.written", "Best candidates of a user that get evidence.", least=0
        ),
    ] = None,
    price_per_hour: Price = 0.0,
    workers: NumWorkers = None,
    executor: ExecutorName = PROCESSES,
    address: Address = None,
    gpus: Gpus = 0.0,
    users_per_part: UsersPerPart = 200,
    assignments: Assignments = None,
) -> None:
    """Judge the candidates; killed at any point, the next call goes on."""
    from sgrec_torchrec.judge.asking import Asking
    from sgrec_torchrec.judge.in_parts import Places

    chosen = settings_of(
        run_dir, "judge", assignments, bf16=bf16, written=written
    ).judge
    settings: dict[str, str | bool] = {} if url is None else {"base_url": url}
    if chosen.bf16:
        settings["bf16"] = True
    places = Places(
        split=run_dir / SPLIT,
        judge=judge or run_dir / JUDGE,
        candidates=candidates or run_dir / CANDIDATES,
        pairs=pairs,
        out=out or run_dir / JUDGED,
    )
    asking = Asking(
        backend=backend, settings=tuple(settings.items()), num_written=chosen.written
    )
    shares = _Shares(executor, address, workers, gpus, users_per_part)
    facts = _judge(places, asking, shares, price_per_hour)
    shown = ("pairs", "seconds", "pairs_per_second", "cached_share", "cost_per_pair")
    typer.echo(jsonlib.dumps({name: facts[name] for name in shown}))
    typer.echo(f"judged: {places.out}")


class _Shares(NamedTuple):
    """Who shares the users out."""

    executor: str
    address: str | None
    workers: int | None
    gpus: float
    users_per_part: int

    @property
    def is_none(self) -> bool:
        """Nothing was said: this process judges."""
        given = self.workers or self.address or self.gpus
        return self.executor == PROCESSES and not given


def _judge(
    places: "Places", asking: "Asking", shares: _Shares, price_per_hour: float
) -> dict[str, Any]:
    from sgrec_torchrec.distributed.choose_executor import chosen_executor
    from sgrec_torchrec.judge.in_parts import judge_here, judge_in_parts

    if shares.is_none:
        return judge_here(places, asking, price_per_hour=price_per_hour)
    if shares.executor == PROCESSES and asking.backend == "vllm":
        raise ValueError(
            "vLLM takes a machine for itself: leave --workers out, or give the GPUs of "
            f"each host to a worker by --executor {RAY} --gpus 1"
        )
    with chosen_executor(
        shares.executor, shares.address, shares.workers, shares.gpus
    ) as executor:
        return judge_in_parts(
            places,
            asking,
            executor,
            users_per_part=shares.users_per_part,
            price_per_hour=price_per_hour,
        )


def _train(run_dir: Path, settings: JudgeConfig, labels: Path, out: Path) -> None:
    from sgrec_torchrec.judge.learn.labels import read_labels
    from sgrec_torchrec.judge.learn.metrics import baseline_scores
    from sgrec_torchrec.judge.learn.told import print_table, report_tables
    from sgrec_torchrec.judge.learn.train_judge import train_judge

    reader = _reader(run_dir, settings)
    cases = read_labels(labels, reader)
    report = train_judge(reader, cases, settings, out, baseline_scores(reader))
    for table in report_tables(report):
        print_table(table)
    typer.echo(f"judge: {out}")


def _reader(run_dir: Path, settings: JudgeConfig) -> "CaseReader":
    from sgrec_torchrec.judge.ask.prompt import PromptSettings
    from sgrec_torchrec.judge.asking import read_log

    return read_log(run_dir / SPLIT, PromptSettings(max_history=settings.max_history))
