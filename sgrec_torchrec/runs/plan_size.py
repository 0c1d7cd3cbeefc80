"""How large the log of a plan is: counted by its import, estimated, or as given.

No event is read for that.
"""

import math
from dataclasses import dataclass

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.run_folder import CANONICAL, ITEMS
from sgrec_torchrec.files.sealed_json import naming
from sgrec_torchrec.logs.canonical import MEND, read_canonical
from sgrec_torchrec.logs.importers.locate import fingerprint, resolve_path
from sgrec_torchrec.runs import plan_costs as costs
from sgrec_torchrec.runs.made_once import place_of
from sgrec_torchrec.runs.prepare import source_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSize:
    """How large a log is, and who says so."""

    events: int
    users: int
    items: int
    told: str
    log_bytes: float
    """Of the imported log beside its catalogue."""
    catalogue_bytes: float


def count_of(option: str, word: str) -> int:
    """A number of an option, as 1e9 or 1000000.

    Raises:
        ValueError: naming the option, for what is no whole number of 1 to ``MOST``.
    """
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 1 <= number <= costs.MOST or number % 1:
        raise ValueError(
            f"{option} {word}: write a whole number from 1 to {costs.MOST:.0e}, as 1e9"
        )
    return int(number)


def given_size(events: str, items: str, users: str | None) -> LogSize:
    """The size that the command line names.

    Raises:
        ValueError: as ``count_of``, or for more users than events.
    """
    num_events = count_of("--events", events)
    num_items = count_of("--items", items)
    told = "as given"
    if users is None:
        told = f"as given, {costs.EVENTS_PER_USER} events a user assumed"
        num_users = max(1, num_events // costs.EVENTS_PER_USER)
    else:
        num_users = count_of("--users", users)
    if num_users > num_events:
        raise ValueError(f"--users {users}: more than --events {events}")
    return _estimated(num_events, num_users, num_items, told)


def log_size(config: RunConfig) -> LogSize:
    """Counted by an import that is there already, else estimated; no event is read.

    Raises:
        ValueError, FileNotFoundError: from the log's path; where nothing is known of a
            source; for a damaged manifest.
    """
    source, path = config.log.source, config.log.path
    folder = place_of(config, CANONICAL, source_of(config))
    if not folder.exists() and source == "canonical":
        folder = resolve_path(path, source)
    if folder.exists():
        manifest = read_canonical(folder, verify=False).manifest
        with naming(folder, MEND):
            each = {name: one["bytes"] for name, one in manifest["files"].items()}
            return LogSize(
                events=int(manifest["rows"]),
                users=int(manifest["users"]),
                items=int(manifest["items"]),
                told=f"as counted by the import of {folder}",
                log_bytes=sum(each.values()) - each[ITEMS],
                catalogue_bytes=each[ITEMS],
            )
    known = costs.KNOWN.get(source)
    if known is None:
        raise ValueError(
            f"log.source = {source!r}: how large it is shows once it is imported; give "
            "--events and --items, or import it before"
        )
    if known.file_bytes is None:
        told = "as an import of this package has it, not counted here"
        return _estimated(known.events, known.users, known.items, told)
    times = sum(size for _, size, _ in fingerprint(source, path)) / known.file_bytes
    return _estimated(
        max(1, round(times * known.events)),
        max(1, round(times * known.users)),
        max(1, round(times * known.items)),
        "ESTIMATED by the bytes of its files, it is not imported yet",
    )


def _estimated(events: int, users: int, items: int, told: str) -> LogSize:
    return LogSize(
        events=events,
        users=users,
        items=items,
        told=told,
        log_bytes=costs.EVENT_BYTES * events,
        catalogue_bytes=costs.ITEM_BYTES * items,
    )
