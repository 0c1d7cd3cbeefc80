"""The ``sgrec`` command: one short function per verb.

Stages are imported inside the verbs, so that ``sgrec --help`` answers at once. What a
user can get wrong ends with one line and exit code 2, not with a traceback.
"""

from pathlib import Path
from typing import Annotated

import typer

from sgrec_torchrec.candidates.commands import app as candidates_app
from sgrec_torchrec.config.arguments import errors_in_one_line
from sgrec_torchrec.config.options import pairs
from sgrec_torchrec.files.run_folder import CONFIG, EVALUATION
from sgrec_torchrec.judge.commands import app as judge_app
from sgrec_torchrec.logs.commands import app as import_app
from sgrec_torchrec.report.commands import app as page_app
from sgrec_torchrec.reward_table.commands import app as table_app
from sgrec_torchrec.serving.commands import app as serving_app

app = typer.Typer(
    help="Generative recommendation on TorchRec: from an interaction log to a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Without a name: verbs of the typer that they are added to.
judge_app.add_typer(page_app)
app.add_typer(judge_app, name="judge")
app.add_typer(table_app, name="table")
app.add_typer(import_app)
app.add_typer(candidates_app)
app.add_typer(serving_app)

Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Override one setting."),
]
RunDir = Annotated[Path, typer.Argument(help="Folder of a run, as runs/movielens.")]


@app.callback()
def _root() -> None:
    """Keeps verbs verbs, even where there is only one."""


@app.command()
def doctor() -> None:
    """Show what is installed, and how to mend what is broken."""
    from sgrec_torchrec.doctor import run

    raise typer.Exit(run())


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train and evaluate; the same options as train.py (sgrec train --help)."""
    from sgrec_torchrec.train import main as run_pipeline

    run_pipeline(context.args)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def prepare(context: typer.Context) -> None:
    """Make what training reads, on all cores or on Ray (sgrec prepare --help)."""
    from sgrec_torchrec.runs.prepare_command import main as prepare_all

    prepare_all(context.args)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def pipeline(context: typer.Context) -> None:
    """All of S-GRec: pretrain, judge, post-train, report (sgrec pipeline --help)."""
    from sgrec_torchrec.runs.pipeline import main as run_all

    run_all(context.args)


@app.command()
def loop(
    run_dir: RunDir,
    rounds: Annotated[int, typer.Option(help="In all; finished ones count.")] = 2,
    max_pairs: Annotated[
        int, typer.Option(help="Judged in a round, those missed most often first.")
    ] = 300,
    assignments: Assignments = None,
) -> None:
    """Post-train, judge what was missed, append, publish if better: in rounds."""
    from sgrec_torchrec.runs.closed_loop import close_loop, show_rounds

    show_rounds(close_loop(run_dir, rounds, max_pairs, assignments or []))


@app.command()
def evaluate(run_dir: RunDir) -> None:
    """Rank the test rows again with a run's best checkpoint, and write its report."""
    from sgrec_torchrec.config import RunConfig
    from sgrec_torchrec.distributed.launch import process_group
    from sgrec_torchrec.distributed.shipped import as_shipped
    from sgrec_torchrec.train import run

    config = as_shipped(RunConfig.read(run_dir / CONFIG).at(run_dir), run_dir)
    with process_group() as ranks:
        run(config, ranks, evaluate_only=True)


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html from the files of a run."""
    from sgrec_torchrec.report.run_page import write_report

    typer.echo(write_report(run_dir))


@app.command()
def compare(
    run_a: RunDir,
    run_b: RunDir,
    system: Annotated[str, typer.Option(help="Whose lists to compare.")] = "generator",
) -> None:
    """Test two runs against each other on the same rows, users as the unit."""
    from sgrec_torchrec.evaluation.compare import compare as compare_hits
    from sgrec_torchrec.evaluation.compare import hits_path, render

    path_a = hits_path(run_a / EVALUATION, system)
    path_b = hits_path(run_b / EVALUATION, system)
    render(compare_hits(path_a, path_b))


@app.command()
def benchmark(
    data: Annotated[
        str, typer.Argument(help="office, beauty, movielens or complete-journey")
    ],
    seeds: Annotated[int, typer.Option(help="Runs with seeds 0, 1, ...", min=1)] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    peer_seeds: Annotated[
        int,
        typer.Option(help="Seeds of RecTools' SASRec (.venv-sequential).", min=0),
    ] = 1,
    tune_minutes: Annotated[
        float, typer.Option(help="Bound of the peer's search, once.", min=0)
    ] = 10.0,
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoints of an earlier call.")
    ] = False,
    assignments: Assignments = None,
) -> None:
    """Train and evaluate over several seeds, beside the baselines, in one table."""
    from sgrec_torchrec.experiments.seeds import benchmark as run_benchmark

    run_benchmark(
        data,
        num_seeds=seeds,
        json_path=json,
        assignments=assignments or [],
        num_peer_seeds=peer_seeds,
        tune_minutes=tune_minutes,
        resume=resume,
    )


@app.command("benchmark-a2po")
def benchmark_a2po(
    data: Annotated[str, typer.Argument(help="office, movielens or complete-journey")],
    table: Annotated[
        Path | None, typer.Option(help="Reward table; without it GRPO alone.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs with seeds 0, 1, ...", min=1)] = 3,
    arms: Annotated[
        str | None,
        typer.Option(help="Some of them, as pretrained,grpo,a2po; all if left."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Keep arms of the same weights, table and settings."),
    ] = False,
    assignments: Assignments = None,
) -> None:
    """Post-train under each fusion from the same weights, and test them in pairs."""
    from sgrec_torchrec.experiments.fusions import benchmark_a2po as run_benchmark

    run_benchmark(
        data,
        num_seeds=seeds,
        table=table,
        json_path=json,
        assignments=assignments or [],
        arms=None if arms is None else arms.split(","),
        resume=resume,
    )


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A run or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder of the package.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Tables as int8 with a scale a row.")
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Add compiled programs for hosts as this one; needs g++."
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Rank the test rows with run and package."),
    ] = False,
) -> None:
    """Write a run as one folder that is served without torchrec, users and log."""
    from sgrec_torchrec.experiments.measure_export import (
        describe_package,
        measure_package,
    )
    from sgrec_torchrec.serving.package import export_package

    manifest = export_package(path, out, is_int8=int8, compiled=compiled)
    typer.echo(describe_package(out, manifest))
    if measure:
        typer.echo(measure_package(path, out))


@app.command()
def serve(
    path: Annotated[
        Path,
        typer.Argument(
            help="A package or a run, or a folder whose `current` links to one."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the clients' token; else SGREC_TOKEN is read."),
    ] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(help="The same for /admin; else SGREC_ADMIN_TOKEN is read."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Of all passes.", min=1)] = 2,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compiled", help="Run the package's native code: for your own packages."
        ),
    ] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="As latency_ms=100."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning")] = "info",
) -> None:
    """Answer requests over HTTP; a page to try it is at the address itself."""
    from sgrec_torchrec.serving.server.command import run_server

    run_server(
        path,
        {"host": host, "port": port, "compiled": compiled},
        pairs(assignments, "FIELD=VALUE, as latency_ms=100"),
        token_file=token_file,
        admin_token_file=admin_token_file,
        num_threads=threads,
        log_level=log_level,
    )


def main() -> None:
    """Entry point of the console script."""
    with errors_in_one_line("sgrec"):
        app()


if __name__ == "__main__":
    main()
