"""Fields of a request -> what the recommender is asked, or what to change.

Checked one by one, before a batch is made: a wrong request must not end another's.
"""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from sgrec_torchrec.serving.catalogue import few, shown
from sgrec_torchrec.serving.filters import Filters, check_filters
from sgrec_torchrec.serving.history import History, KnownHistory
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.served_model import ServedModel
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.wire import FilterFields, RecommendRequest, UserId


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A sound request to one model."""

    model: ServedModel
    history: KnownHistory
    k: int
    filters: Filters
    with_evidence: bool
    key: Hashable
    """Of the user's state."""
    num_given: int
    """Events that the client gave."""
    notes: list[str] = field(default_factory=list)
    """What of the request was left out, for the answer."""


def check_request(
    request: RecommendRequest, model: ServedModel, settings: ServerSettings
) -> Asked:
    """Bound the lists, look every id up.

    Raises:
        RequestError: 422, naming what to change.
    """
    most = min(settings.max_k, model.recommender.max_k)
    if request.k > most:
        raise RequestError(422, f"k = {request.k} is outside [1, {most}]")
    _check_listed(request.filters, settings.max_listed)
    notes: list[str] = []
    given = _newest(request, settings.max_events, notes)
    filters = Filters(
        seen=request.filters.seen,
        blocked=request.filters.blocked,
        allowed=request.filters.allowed,
        category=request.filters.category,
        max_per_prefix=request.filters.max_per_prefix,
        prefix_length=request.filters.prefix_length,
    )
    parts = model.recommender
    try:
        history = parts.check(given, strict=request.strict)
        check_filters(
            filters,
            parts.catalogue,
            parts.settings.num_levels,
            parts.settings.filter_seen,
            "filters",
        )
    except ValueError as error:
        raise RequestError(422, str(error)) from error
    notes += _unknown(request, history)
    num_read = min(len(history), parts.settings.max_history)
    if num_read < len(request.history) - history.num_unknown:
        notes.append(
            f"the history has {len(request.history)} events; the network read the "
            f"newest {num_read}"
        )
    return Asked(
        model=model,
        history=history,
        k=request.k,
        filters=filters,
        with_evidence=request.with_evidence,
        key=_key(request.user, history),
        num_given=len(request.history),
        notes=notes,
    )


def _newest(request: RecommendRequest, max_events: int, notes: list[str]) -> History:
    num_given = len(request.history)
    for name in ("timestamps", "events", "values"):
        column: Sequence[object] | None = getattr(request, name)
        if column is not None and len(column) != num_given:
            raise RequestError(
                422,
                f"{name} has {len(column)} entries, history {num_given}: give one for "
                "each item",
            )
    first = max(0, num_given - max_events)
    if first:
        notes.append(f"the oldest {first} events were left out: {max_events} are kept")
    times, events, values = request.timestamps, request.events, request.values
    return History(
        item_ids=request.history[first:],
        timestamps=None if times is None else times[first:],
        events=None if events is None else events[first:],
        values=None if values is None else values[first:],
    )


def _check_listed(filters: FilterFields, most: int) -> None:
    for name, listed in (("blocked", filters.blocked), ("allowed", filters.allowed)):
        if listed is not None and len(listed) > most:
            raise RequestError(
                422,
                f"filters.{name} has {len(listed)} entries: give at most {most}; for "
                "many items use filters.category",
            )


def _unknown(request: RecommendRequest, history: KnownHistory) -> Iterator[str]:
    """What the model does not know of a request that it answers all the same."""
    if history.num_unknown:
        yield (
            f"{history.num_unknown} events were left out, whose items this model does "
            f"not have: {few(history.unknown, history.num_unknown)}"
        )
    if len(history):
        return
    if request.user is not None:
        yield (
            f"user {shown(request.user)} is not known here: a history comes with the "
            "request, and this one has none; the list is that of a new user"
        )
    elif history.num_given:
        yield "nothing is left of the history: the list is that of a new user"


def _key(user: UserId | None, history: KnownHistory) -> Hashable:
    """The user, so that a grown history finds the old one's state; else the items."""
    if user is not None:
        # As text: 42 and "42" are one user. Digested: a text may be as long as a body.
        return ("user", hashlib.sha256(str(user).encode()).digest())
    return ("items", hashlib.sha256(history.items_H.tobytes()).digest())
