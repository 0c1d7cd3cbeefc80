"""The verb of the judge's page; stages are imported inside it."""

from pathlib import Path
from typing import Annotated

import typer

from sgrec_torchrec.files.run_folder import JUDGED, SPLIT

app = typer.Typer()
"""Added to ``sgrec judge`` without a name of its own."""
RunDir = Annotated[Path, typer.Argument(help="Folder of a run, as runs/movielens.")]


@app.command()
def page(
    run_dir: Annotated[
        Path, typer.Argument(help="Folder of a run, as runs/movielens.")
    ],
    judged: Annotated[Path | None, typer.Option(help="Else RUN/judged.")] = None,
    max_users: Annotated[int, typer.Option(min=1)] = 200,
) -> None:
    """Write an HTML page to look at users, candidates, scores and evidence."""
    from sgrec_torchrec.logs.split import load_split
    from sgrec_torchrec.report.judge_page import write_page

    catalogue = load_split(run_dir / SPLIT).catalogue
    titles = dict(zip(catalogue.item_ids, catalogue.titles, strict=True))
    typer.echo(write_page(judged or run_dir / JUDGED, titles, max_users=max_users))
