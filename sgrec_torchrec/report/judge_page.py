"""A judged folder -> ``index.html``: one file for people who look into judgements.

Pictures and means are of all pairs; a seeded choice of users is shown one by one. All
text is untrusted: the template engine escapes it, the page's script sets it as text.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.run_folder import JUDGE_PAGE
from sgrec_torchrec.judge.ask.aspects import ASPECTS, LEVELS
from sgrec_torchrec.report.judged_folder import REWARD, JudgedFolder, open_judged
from sgrec_torchrec.report.judged_pairs import (
    MAX_VERSIONS,
    NUM_BINS,
    Items,
    cut,
    measures_of,
    open_pairs,
    totals,
    users_of,
    wins_of,
)

TEMPLATE = "judge_page.html.j2"
MAX_LISTED = 8
MAX_FACTS = 200


def write_page(
    judged: Path,
    titles: Mapping[str, str],
    out: Path | None = None,
    *,
    max_users: int = 200,
    seed: int = 0,
) -> Path:
    """Write the page, by default as ``judged/index.html``; call it on one rank only.

    Pairs are read in a stream that spills to the folder for temporary files. The size
    of the page is bounded by ``max_users`` and ``judged_pairs.MAX_ROWS``.

    Args:
        judged: ``part-*.parquet``, ``users.parquet`` and ``manifest.json``; without
            the last, the page says so.
        titles: item id -> title; an item without one is shown by its id.
        out: the file to write.
        max_users: how many users are shown one by one.
        seed: of their choice, which depends on nothing but it and the ids.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: where there are no parts or no ``users.parquet``.
        ValueError: naming a file that cannot be read or lacks a column.
    """
    if max_users < 1:
        raise ValueError(f"max_users is {max_users}; show 1 user or more")
    folder = open_judged(judged)
    names = folder.check_columns()
    facts = _facts(folder)
    with folder.reading():
        context = _context(folder, names, Items(titles), max_users, seed)
    page = _environment().get_template(TEMPLATE).render(facts=facts, **context)
    path = out or judged / JUDGE_PAGE
    with atomic_file(path) as temporary:
        # A lone surrogate cannot be written as UTF-8.
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _context(
    folder: JudgedFolder, names: set[str], items: Items, max_users: int, seed: int
) -> dict[str, Any]:
    """What the template shows of the pairs; ``data`` is for its script."""
    with open_pairs(folder, names) as (connection, aspects):
        measures = measures_of(connection, aspects)
        whole = totals(connection)
        wins = wins_of(connection, measures)
        users = users_of(connection, measures, items, max_users, seed)
    judged_names = {measure.name for measure in measures}
    return {
        **whole,
        "measures": measures,
        "wins": wins,
        "has_reward": REWARD in judged_names,
        "absent": [a.words for a in ASPECTS if a.name not in judged_names],
        "levels": LEVELS,
        "num_bins": NUM_BINS,
        "max_versions": MAX_VERSIONS,
        "num_shown": len(users),
        "data": {
            "measures": [(measure.name, measure.label) for measure in measures],
            "sources": {name: label for name, label, _ in whole["sources"]},
            "users": users,
            "items": items.rows(),
        },
    }


def _facts(folder: JudgedFolder) -> list[tuple[str, str]] | None:
    """The manifest as labels and texts; None where it is absent."""
    manifest = folder.manifest()
    return None if manifest is None else list(islice(_flat(manifest, ""), MAX_FACTS))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        label = f"{prefix} {name}".replace("_", " ").strip()
        if isinstance(value, dict):
            yield from _flat(value, label)
        elif isinstance(value, list):
            listed = ", ".join(_fact(part) for part in value[:MAX_LISTED])
            more = f", ... ({len(value)} in all)" if len(value) > MAX_LISTED else ""
            yield str(cut(label)), f"{cut(listed)}{more}" or "none"
        else:
            yield str(cut(label)), str(cut(_fact(value)))


def _fact(value: object) -> str:
    """A value as people write it.

    >>> [_fact(value) for value in (True, None, 100004, 0.000123456, "cpu")]
    ['yes', 'none', '100,004', '0.0001235', 'cpu']
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _digest(script: str) -> str:
    """How the content security policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digest"] = _digest
    # No number that JSON has no word for: the page's parser would refuse all of it.
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment
