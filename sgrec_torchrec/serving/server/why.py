"""Which items of a history begin with the same codes as a recommended one."""

import numpy as np

from sgrec_torchrec.serving.recommender import Recommended
from sgrec_torchrec.serving.server.checks import Asked
from sgrec_torchrec.serving.server.wire import Item, Known, Near, RecommendAnswer

MAX_NEAR = 3
SHOWN_EVENTS = 50
"""Newest events that are compared and shown."""


def answer(asked: Asked, found: Recommended, explain: bool) -> RecommendAnswer:
    """What a client gets."""
    model = asked.model
    history: list[Known] | None = None
    near: list[list[Near] | None] = [None] * len(found.item_ids)
    if explain:
        newest_H = asked.history.items_H[-SHOWN_EVENTS:]
        history = model.titles.known(newest_H.tolist())
        near = [nearest(list(codes), history) for codes in found.codes]
    rows = zip(
        found.item_ids, found.titles, found.scores, found.codes, near, strict=True
    )
    return RecommendAnswer(
        items=[
            Item(item_id=item, title=title, score=score, codes=list(codes), near=near)
            for item, title, score, codes, near in rows
        ],
        events_given=asked.num_given,
        events_read=found.num_read,
        events_unknown=asked.history.num_unknown,
        notes=asked.notes,
        model=model.name,
        generation=model.generation,
        history=history,
    )


def nearest(codes: list[int], history: list[Known]) -> list[Near]:
    """History items that share first codes: most shared first, then the newest."""
    if not history:
        return []
    shared_HL = np.array([known.codes for known in history]) == np.array(codes)
    shared_H = np.cumprod(shared_HL, axis=1).sum(axis=1)
    order = np.lexsort((-np.arange(len(history)), -shared_H))
    named: dict[str, Near] = {}
    for place in order[shared_H[order] > 0]:
        known = history[place]
        if len(named) < MAX_NEAR and known.item_id not in named:
            named[known.item_id] = Near(
                item_id=known.item_id,
                title=known.title,
                shared_codes=int(shared_H[place]),
            )
    return list(named.values())
