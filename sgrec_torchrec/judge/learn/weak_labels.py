"""Behaviour of label users -> levels and preferences for the judge to learn from.

Where nobody has labelled anything, what label users chose next stands in. Their events
are theirs alone (``logs.judged_users``): post-training has other users, so no label
holds the target of a row that it trains on; and only their train period is read.

future interest: 5 among the next few choices, 4 among the next twenty, 3 later, else 2
or 1 by likeness to what came next. Profile, context and novelty are likeness of texts
(``likeness``) to the newest choices, to the latest, and the want of it, cut into five
levels of equal size. Preferred are items chosen within the horizon to those
never chosen in the train period.

Letters: C candidates, P past events, F events to come.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.hashing import CANDIDATE, FOLD, hash64, uniform
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.judge.ask.aspects import LEVELS, Aspect
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.likeness import LATEST
from sgrec_torchrec.judge.ask.prompt import clean
from sgrec_torchrec.judge.learn.labels import (
    CHOSEN,
    HELD_OUT_SHARE,
    Int8Array,
    LabelledCase,
    Preference,
)
from sgrec_torchrec.logs.judged_users import id_hash, id_hashes, is_label_user
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Float64Array,
    Int32Array,
    Int64Array,
)

MAX_PAST = 200
"""Newest past choices that hard negatives follow from."""
NEAR = 20
"""Choices to come that likeness looks at."""
MAX_TITLE_CHARS = 60


def weak_labels(
    reader: CaseReader, graph: ItemGraph, settings: JudgeConfig, seed: int
) -> list[LabelledCase]:
    """Cases of label users with levels, evidence and preferences.

    Cuts into levels are taken from the cases to learn from, not from held-out ones.
    Ranks do not communicate. Memory grows with ``max_cases``.

    Args:
        seed: ``log.seed``, which tells who is a label user.

    Raises:
        ValueError: where no label user has a case.
    """
    drawn = list(
        progress(
            _Drawer(reader, graph, settings, seed), description="cases", unit="case"
        )
    )
    if not drawn:
        raise ValueError(
            f"no label user has a train period long enough for a case (over "
            f"{settings.min_history} events): bring labels of your own"
        )
    alike = [_likeness(one, reader) for one in drawn]
    to_learn = [a for a, d in zip(alike, drawn, strict=True) if not d.is_held_out]
    cuts = _Cuts.of(to_learn or alike)
    return [
        _labelled(one, likeness, cuts, reader, settings)
        for one, likeness in zip(drawn, alike, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """A case, its candidates' sources, and what the user chose from it on."""

    case: Case
    sources: tuple[str, ...]
    future_F: Int32Array
    is_held_out: bool


class _Drawer:
    """Draws cases and candidates; every draw is a hash of user, time and purpose."""

    def __init__(
        self, reader: CaseReader, graph: ItemGraph, settings: JudgeConfig, seed: int
    ) -> None:
        self.sequences = reader.split.sequences
        self.user_ids = reader.split.user_ids
        self.graph = graph
        self.settings, self.seed = settings, seed
        self.popularity = np.cumsum(graph.popularity_N)

    def __iter__(self) -> Iterator[_Drawn]:
        for user in self._users():
            key = id_hash(self.user_ids[user])
            is_held_out = uniform(hash64(self.seed, FOLD, key)) < HELD_OUT_SHARE
            for as_of in self._times(int(user), key):
                yield self._draw(int(user), key, int(as_of), bool(is_held_out))

    def _users(self) -> Int64Array:
        """Label users in the order of the log, no more than ``max_cases`` need."""
        seed, settings = self.seed, self.settings
        users = np.flatnonzero(is_label_user(self.user_ids, seed))
        keys = id_hashes(taken(self.user_ids, users))
        order = np.argsort(hash64(seed, CANDIDATE, keys), kind="stable")
        num_users = -(-settings.max_cases // settings.cases_per_user)
        few: Int64Array = np.sort(users[order[:num_users]])
        return few

    def _train(self, user: int) -> slice:
        first = int(self.sequences.offsets_U1[user])
        return slice(first, first + int(self.sequences.train_end_U[user]))

    def _times(self, user: int, key: int) -> Int64Array:
        """Starts of baskets with enough before them, some of them, in order."""
        times = self.sequences.timestamps_R[self._train(user)]
        starts = np.flatnonzero(np.diff(times) > 0) + 1
        starts = starts[starts >= self.settings.min_history]
        order = np.argsort(hash64(self.seed, CANDIDATE, key, starts))
        few: Int64Array = np.sort(starts[order[: self.settings.cases_per_user]])
        return few

    def _draw(self, user: int, key: int, as_of: int, is_held_out: bool) -> _Drawn:
        settings = self.settings
        items = self.sequences.items_R[self._train(user)]
        times = self.sequences.timestamps_R[self._train(user)]
        future = items[as_of:]

        def draw(purpose: int, count: int) -> npt.NDArray[np.float64]:
            places = np.arange(count)
            drawn = hash64(self.seed, CANDIDATE, key, as_of, purpose, places)
            return uniform(drawn)

        near = np.unique(future[1 : settings.horizon])
        near = near[near != future[0]]
        order = np.argsort(draw(0, len(near)))[: settings.num_chosen - 1]
        source = {int(future[0]): "next"}
        source |= dict.fromkeys(near[order].tolist(), "chosen")
        hard = self._hard(user, as_of, items)
        order = np.argsort(draw(1, len(hard)))[: settings.num_hard]
        source |= dict.fromkeys(hard[order].tolist(), "hard_negative")
        taken = {*items.tolist(), *source}
        places = draw(2, 20 * settings.num_easy) * self.popularity[-1]
        popular = np.searchsorted(self.popularity, places, "right").tolist()
        easy = [item for item in dict.fromkeys(popular) if item not in taken]
        source |= dict.fromkeys(easy[: settings.num_easy], "easy_negative")
        # Shuffled, so that the place in the list says nothing.
        names = list(source)
        shuffled = [names[place] for place in np.argsort(draw(3, len(names)))]
        case = Case(
            user=user,
            as_of=as_of,
            request_timestamp=int(times[as_of]),
            items=tuple(shuffled),
        )
        return _Drawn(
            case=case,
            sources=tuple(source[item] for item in shuffled),
            future_F=future,
            is_held_out=is_held_out,
        )

    def _hard(self, user: int, as_of: int, items: Int32Array) -> Int32Array:
        """The item graph's best after the history, but for what was ever chosen."""
        row = EvalRows(
            user_E=np.array([user]),
            history_start_E=np.array([max(as_of - MAX_PAST, 0)], np.int32),
            history_end_E=np.array([as_of], np.int32),
            target_E=items[as_of : as_of + 1],
            target_timestamp_E=np.zeros(1, np.int64),
        )
        depth = self.settings.hard_depth
        best = self.graph.top_items(
            self.sequences, row, depth + len(items), filter_seen=False
        )[0]
        never: Int32Array = best[(best >= 0) & ~np.isin(best, items)][:depth]
        return never


@dataclass(frozen=True, slots=True, kw_only=True)
class _Likeness:
    """What levels are cut from, float [C] each."""

    profile_C: Float32Array
    context_C: Float32Array
    novelty_C: Float32Array
    coming_C: Float32Array
    """Likeness to what came next."""
    place_C: Int64Array
    """Place among the choices to come; -1: never chosen."""
    closest_C: Int64Array
    """The past item most like the candidate."""


def _likeness(drawn: _Drawn, reader: CaseReader) -> _Likeness:
    items = np.array(drawn.case.items)
    past = reader.history(drawn.case)[0]
    alike = reader.grader.likeness(drawn.case.items, past)
    coming = reader.grader.likeness(drawn.case.items, drawn.future_F[:NEAR].tolist())
    place_C = np.full(len(items), -1)
    for place in range(len(drawn.future_F) - 1, -1, -1):
        place_C[items == drawn.future_F[place]] = place
    return _Likeness(
        profile_C=alike.newest_C,
        context_C=alike.latest_C,
        novelty_C=np.where(np.isin(items, past), np.float32(0), 1 - alike.nearest_C),
        coming_C=coming.nearest_C,
        place_C=place_C,
        closest_C=alike.nearest_item_C,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cuts:
    """Likeness -> levels: the bounds between five parts of equal size."""

    profile: Float64Array
    context: Float64Array
    novelty: Float64Array
    coming: float

    @staticmethod
    def of(likeness: list[_Likeness]) -> "_Cuts":
        shares = np.arange(1, len(LEVELS)) / len(LEVELS)

        def cut(name: str) -> Float64Array:
            values = np.concatenate([getattr(one, name) for one in likeness])
            bounds: Float64Array = np.quantile(values, shares)
            return bounds

        coming = np.concatenate([one.coming_C[one.place_C < 0] for one in likeness])
        return _Cuts(
            profile=cut("profile_C"),
            context=cut("context_C"),
            novelty=cut("novelty_C"),
            coming=float(np.median(coming)) if len(coming) else 0.0,
        )

    def levels(
        self, one: _Likeness, aspects: tuple[Aspect, ...], settings: JudgeConfig
    ) -> Int8Array:
        """int8 [C, A], 1 to 5."""
        place = one.place_C
        future = np.select(
            [
                (place >= 0) & (place < settings.num_soon),
                (place >= 0) & (place < settings.horizon),
                place >= 0,
                one.coming_C > self.coming,
            ],
            [5, 4, 3, 2],
            1,
        )
        by_name = {
            "profile": 1 + np.searchsorted(self.profile, one.profile_C),
            "future_interest": future,
            "novelty": 1 + np.searchsorted(self.novelty, one.novelty_C),
            "context": 1 + np.searchsorted(self.context, one.context_C),
        }
        columns = [by_name[aspect.name] for aspect in aspects]
        return np.stack(columns, axis=1).astype(np.int8)


def _labelled(
    drawn: _Drawn,
    one: _Likeness,
    cuts: _Cuts,
    reader: CaseReader,
    settings: JudgeConfig,
) -> LabelledCase:
    is_chosen = [source in CHOSEN for source in drawn.sources]
    preferences = tuple(
        Preference(better=better, worse=worse)
        for better, is_better in enumerate(is_chosen)
        for worse, is_as_good in enumerate(is_chosen)
        if is_better and not is_as_good
    )
    return LabelledCase(
        case=drawn.case,
        sources=drawn.sources,
        levels_CA=cuts.levels(one, reader.aspects, settings),
        evidence=tuple(
            _evidence(reader, drawn.case, place, int(one.closest_C[place]))
            for place in range(len(drawn.case.items))
        ),
        preferences=preferences,
        is_held_out=drawn.is_held_out,
    )


def _evidence(
    reader: CaseReader, case: Case, place: int, closest: int
) -> tuple[str, ...]:
    """A sentence an aspect, from what the prompt shows alone."""
    past = reader.history(case)[0]
    item = case.items[place]
    shared = reader.num_alike(item, past)
    latest = reader.num_alike(item, past[-LATEST:])
    near = clean(reader.split.catalogue.titles[closest], MAX_TITLE_CHARS)
    by_name = {
        "profile": f"{shared} of the {len(past)} choices share a kind with it.",
        "future_interest": f"{latest} of the latest {LATEST} choices lead to it.",
        "novelty": f"The choice most like it is {near}.",
        "context": f"{latest} of the latest {LATEST} choices share a kind with it.",
    }
    return tuple(by_name[aspect.name] for aspect in reader.aspects)
