"""``sgrec recommend``: what a trained model gives one user.

Stages are imported inside the verbs, so that ``sgrec --help`` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def recommend(
    path: Annotated[Path, typer.Argument(help="A run, a checkpoint or a package.")],
    user: Annotated[str | None, typer.Option(help="A user of the run's log.")] = None,
    item: Annotated[
        list[str] | None,
        typer.Option(help="Instead of a user: a history, oldest item first."),
    ] = None,
    k: Annotated[int, typer.Option(help="Items to show.")] = 10,
    category: Annotated[
        str | None, typer.Option(help="Only items of this category.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Only these items; once an item.")
    ] = None,
    block: Annotated[
        list[str] | None, typer.Option(help="Not these items; once an item.")
    ] = None,
    seen: Annotated[
        bool | None,
        typer.Option(
            "--without-seen/--with-seen",
            help="Leave the history's items out, or not; as trained if left.",
        ),
    ] = None,
    max_per_prefix: Annotated[
        int | None, typer.Option(help="Most items that share their first codes.")
    ] = None,
    prefix_length: Annotated[
        int, typer.Option(help="How many first codes --max-per-prefix means.")
    ] = 1,
    without_evidence: Annotated[
        bool, typer.Option("--without-evidence", help="Ask the network alone.")
    ] = False,
) -> None:
    """Show what a trained model recommends to one user, with titles."""
    from sgrec_torchrec.serving.filters import Filters
    from sgrec_torchrec.serving.show import show_recommendations

    show_recommendations(
        path,
        user_id=user,
        item_ids=item or [],
        k=k,
        filters=Filters(
            seen=seen,
            blocked=block or [],
            allowed=allow or None,
            category=category,
            max_per_prefix=max_per_prefix,
            prefix_length=prefix_length,
        ),
        with_evidence=not without_evidence,
    )
