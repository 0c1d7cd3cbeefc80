"""One user's list as tables for a terminal: what ``sgrec recommend`` prints."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sgrec_torchrec.serving.catalogue import ItemId
from sgrec_torchrec.serving.filters import Filters
from sgrec_torchrec.serving.history import History
from sgrec_torchrec.serving.package import is_package
from sgrec_torchrec.serving.recommender import Recommended, Recommender

SHOWN_EVENTS = 8


def show_recommendations(
    path: Path,
    *,
    user_id: str | None,
    item_ids: Sequence[ItemId],
    k: int,
    filters: Filters,
    with_evidence: bool,
) -> None:
    """Load, ask for one user, print.

    Args:
        path: a run, a checkpoint or a package.
        user_id: of the run's log; None takes ``item_ids`` as the history.
        item_ids: a history, oldest first; empty is a user without one.
        k: items to show.
        filters: what may be shown.
        with_evidence: False asks the network alone.

    Raises:
        ValueError, FileNotFoundError: naming what to change.
    """
    if user_id is not None and item_ids:
        raise ValueError("give --user or --item, not both")
    history = History(item_ids=list(item_ids))
    if user_id is not None:
        if is_package(path):
            raise ValueError(
                f"--user: {path} is a package, which holds no users; give the history "
                "with --item, once an item, or name the run"
            )
        from sgrec_torchrec.serving.run_files import logged_history

        history = logged_history(path, user_id)
    recommender = Recommender.load(path, with_evidence=with_evidence)
    (found,) = recommender.recommend(
        [history], k, filters=filters, with_evidence=with_evidence, strict=True
    )
    console = Console()
    console.print(_heading(recommender, user_id, found), highlight=False)
    if len(history.item_ids):
        console.print(_history_table(recommender, history))
    if found.item_ids:
        console.print(_list_table(found))
    else:
        console.print("No item is left: the filters rule all out.")


def _heading(recommender: Recommender, user_id: str | None, found: Recommended) -> str:
    settings = recommender.settings
    who = "this history" if user_id is None else f"user {user_id}"
    uses_evidence = recommender.parts.evidence is not None
    share = settings.prior_weight if uses_evidence else None
    lines = [
        f"For {who} by {settings.made_of}, "
        + (f"evidence weighs {share:g}" if share else "without evidence"),
        f"{found.num_events} events, the newest {found.num_read} read",
    ]
    return escape("\n".join(lines))


def _history_table(recommender: Recommender, history: History) -> Table:
    newest = slice(-SHOWN_EVENTS, None)
    shown = list(history.item_ids)[newest]
    items = recommender.catalogue.indices(shown, "item")
    has_clock = recommender.settings.has_clock and history.timestamps is not None
    table = Table("last items", "id", *(["when"] if has_clock else []))
    times = history.timestamps[newest] if history.timestamps else [0] * len(shown)
    for item, second in zip(items, times, strict=True):
        when = datetime.datetime.fromtimestamp(second, datetime.UTC)
        cells = [
            recommender.catalogue.titles[item],
            recommender.catalogue.item_ids[item],
        ]
        table.add_row(*map(escape, cells), *([f"{when:%Y-%m-%d}"] if has_clock else []))
    return table


def _list_table(found: Recommended) -> Table:
    table = Table("", "recommended", "id", "chance", "score", "codes")
    rows = zip(found.titles, found.item_ids, found.scores, found.codes, strict=True)
    for place, (title, item_id, score, codes) in enumerate(rows, start=1):
        table.add_row(
            str(place),
            escape(title),
            escape(item_id),
            f"{100 * math.exp(score):.2f} %",
            f"{score:.3f}",
            " ".join(map(str, codes)),
        )
    return table
