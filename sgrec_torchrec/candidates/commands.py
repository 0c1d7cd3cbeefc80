"""``sgrec candidates``; stages are imported inside, so that ``--help`` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from sgrec_torchrec.config import CandidatesConfig
from sgrec_torchrec.config.options import option, settings_of

app = typer.Typer()
RunDir = Annotated[Path, typer.Argument(help="Folder of a run, as runs/movielens.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="candidates.FIELD=VALUE",
        help="Override one setting of the run; other options go before it.",
    ),
]


@app.command()
def candidates(
    run_dir: RunDir,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; RUN_DIR/candidates if left.")
    ] = None,
    share: Annotated[
        float | None,
        option("candidates.share", "Of the eligible users, judged if live."),
    ] = None,
    every_user: Annotated[
        bool, typer.Option(help="All eligible users, those without a hit too.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Ask at valid rows, for align.prompts=fresh."),
    ] = False,
    max_users: Annotated[
        int | None,
        option("candidates.max_users", "Judged users at most, drawn by a hash."),
    ] = None,
    num_rollouts: Annotated[
        int | None, option("candidates.num_rollouts", "Rollouts of a user.")
    ] = None,
    beam: Annotated[
        int | None, option("candidates.beam", "Best items of the beam.")
    ] = None,
    hard: Annotated[
        int | None, option("candidates.hard", "Negatives by the item graph.")
    ] = None,
    easy: Annotated[
        int | None, option("candidates.easy", "Negatives by popularity.")
    ] = None,
    max_per_user: Annotated[
        int | None,
        option("candidates.max_per_user", "Pairs of a user; the sources take turns."),
    ] = None,
    seed: Annotated[
        int | None,
        option("candidates.seed", "Of the draws; log.seed of the run if left."),
    ] = None,
    assignments: Assignments = None,
) -> None:
    """Write the (user, item) pairs that a judge will judge, by the best checkpoint."""
    sources = {"num_rollouts": num_rollouts, "beam": beam, "hard": hard, "easy": easy}
    bounds = {"max_users": max_users, "max_per_user": max_per_user, "seed": seed}
    who = _who(every_user, share) | {"fresh": fresh or None}
    given = {**who, **bounds, **sources}
    settings = settings_of(run_dir, "candidates", assignments, **given).candidates
    _write(run_dir, settings, out)


def _who(every_user: bool, share: float | None) -> dict[str, float | bool | None]:
    if not every_user:
        return {"share": share}
    if share is not None:
        raise ValueError(
            "--every-user asks for all eligible users: leave out --share, or bound "
            "them with --max-users"
        )
    return {"share": 1.0, "keep_dead": True}


def _write(run_dir: Path, settings: CandidatesConfig, out: Path | None) -> None:
    from sgrec_torchrec.candidates.draw import write_candidates
    from sgrec_torchrec.distributed.launch import process_group

    with process_group() as ranks:
        write_candidates(run_dir, settings, ranks, out)
