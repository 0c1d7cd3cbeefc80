"""What is to be judged -> prompts: a user's history up to a point, and candidates.

A case shows nothing of its user from the request on, and nothing of other users'
choices that came later than the request.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.judge.aspects import Aspect, asked_aspects
from sgrec_torchrec.judge.likeness import LikenessGrader
from sgrec_torchrec.judge.prompt import (
    FAME,
    Asked,
    PastItem,
    PromptSettings,
    ShownItem,
    ShownLikeness,
    UserPrompt,
    user_prompt,
)
from sgrec_torchrec.logs.judged_users import prefix_hash
from sgrec_torchrec.schema import Int32Array, Int64Array, Sequences, SplitLog

NEVER_ENDS = 1 << 62
FAME_SHARES = (0.5, 0.8, 0.95, 0.99)
"""An item known by more than these shares of the items is one step better known."""
BOUNDS_A_DOUBLING = 8
"""How often the counts that this takes are found anew while the log doubles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One user at one time, and the items asked about (dense indices)."""

    user: int
    as_of: int
    """Number of the user's events that may be seen: all strictly before the request."""
    request_timestamp: int
    items: tuple[int, ...]


class CaseReader:
    """Turns cases of one log into prompts. Memory: 16 bytes a train event."""

    def __init__(self, split: SplitLog, settings: PromptSettings) -> None:
        self.split = split
        self.settings = settings
        self.has_clock = split.sequences.has_clock
        self._kinds = [
            _kinds(category) or _kinds(brand)
            for category, brand in zip(
                split.catalogue.categories, split.catalogue.brands, strict=True
            )
        ]
        self._known = _Known(split.sequences)

    @cached_property
    def grader(self) -> LikenessGrader:
        """Text likeness; embeds the catalogue's texts on first use (kept on disk)."""
        return LikenessGrader(self.split.catalogue.texts)

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """Without context where the log has no clock."""
        return asked_aspects(self.has_clock)

    @property
    def prompt_version(self) -> str:
        """Names the words that prompts are made of."""
        return self.settings.version(self.aspects)

    def prompt(self, case: Case, asked: Asked) -> UserPrompt:
        """The case in words; with no items, questions about the user alone."""
        items, times = self.history(case)
        past = [
            PastItem(
                item=self._shown(int(item), None),
                timestamp=int(time) if self.has_clock else None,
            )
            for item, time in zip(items, times, strict=True)
        ]
        now = case.request_timestamp if self.has_clock else None
        return user_prompt(
            past,
            self._candidates(case, items, now),
            asked,
            self.settings,
            now,
        )

    def history(self, case: Case) -> tuple[Sequence[int], Sequence[int]]:
        """Items and timestamps that may be seen, oldest first."""
        sequences = self.split.sequences
        first = int(sequences.offsets_U1[case.user])
        seen = slice(first, first + case.as_of)
        return (
            sequences.items_R[seen].tolist(),
            sequences.timestamps_R[seen].tolist(),
        )

    def next_timestamp(self, user: int, as_of: int) -> int:
        """When the user's next event was; that of the last one, where none follows."""
        sequences = self.split.sequences
        first, end = sequences.offsets_U1[user : user + 2]
        row = min(int(first) + as_of, int(end) - 1)
        return int(sequences.timestamps_R[row])

    def history_ids(self, case: Case) -> list[str]:
        """Stable ids of the history, oldest first."""
        ids = self.split.catalogue.item_ids
        return [ids[item] for item in self.history(case)[0]]

    def history_hash(self, case: Case) -> int:
        """Names the history, as candidates and reward table do."""
        return prefix_hash(self.split, case.user, case.as_of)

    def popularity(self, item: int, now: int) -> int:
        """Train events of the item before ``now``; of all, where there is no clock."""
        return self._known.before(item, now if self.has_clock else NEVER_ENDS)

    def num_alike(self, item: int, past: Sequence[int]) -> int:
        """How many past items share a category (or the brand) with the item."""
        own = set(self._kinds[item])
        return sum(not own.isdisjoint(self._kinds[other]) for other in past)

    def _candidates(
        self, case: Case, past: Sequence[int], now: int | None
    ) -> list[ShownItem]:
        plain = [self._shown(item, now) for item in case.items]
        if not past or not case.items or not self.settings.shows_likeness:
            return plain
        grader, titles = self.grader, self.split.catalogue.titles
        alike = grader.likeness(case.items, past)
        return [
            replace(
                shown,
                likeness=ShownLikeness(
                    newest=grader.grade("newest_C", alike.newest_C[place]),
                    latest=grader.grade("latest_C", alike.latest_C[place]),
                    nearest=grader.grade("nearest_C", alike.nearest_C[place]),
                    nearest_title=titles[alike.nearest_item_C[place]],
                ),
            )
            for place, shown in enumerate(plain)
        ]

    def _shown(self, item: int, now: int | None) -> ShownItem:
        fame = None if now is None else self._known.fame(item, now)
        title = self.split.catalogue.titles[item]
        return ShownItem(title=title, kinds=self._kinds[item], fame=fame)


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)


class _Known:
    """How well known an item was at a time, by train events before it alone."""

    def __init__(self, sequences: Sequences) -> None:
        _, row_F = sequences.events_until(fit_ends(sequences, "train"))
        items_F, times_F = sequences.items_R[row_F], sequences.timestamps_R[row_F]
        order = np.lexsort((times_F, items_F))
        count_N = np.bincount(items_F, minlength=sequences.num_items)
        self._times = times_F[order]
        self._all_times: Int64Array = np.sort(times_F)
        self._indptr = np.concatenate([[0], np.cumsum(count_N)])
        by_time = items_F[np.argsort(times_F, kind="stable")]
        # Where bounds are taken depends on no later event, not even on their number.
        step = np.arange(40 * BOUNDS_A_DOUBLING)
        ends = np.unique(np.round(2.0 ** (step / BOUNDS_A_DOUBLING)).astype(np.int64))
        self._ends = ends[ends <= len(by_time)]
        self._bounds = _bounds(by_time, self._ends, sequences.num_items)

    def before(self, item: int, now: int) -> int:
        """Events of the item before ``now``."""
        own = self._times[self._indptr[item] : self._indptr[item + 1]]
        return int(np.searchsorted(own, now))

    def fame(self, item: int, now: int) -> int:
        """Index into ``FAME``, by bounds that were taken shortly before ``now``."""
        passed = int(np.searchsorted(self._all_times, now))
        taken = int(np.searchsorted(self._ends, passed, "right")) - 1
        if taken < 0:
            return 0
        count = self.before(item, now)
        step = int(np.searchsorted(self._bounds[taken], count, "right"))
        return min(step, len(FAME) - 1)


def _bounds(
    by_time_F: Int32Array, ends: Int64Array, num_items: int
) -> list[npt.NDArray[np.float64]]:
    """Counts that ``FAME_SHARES`` of the items known by so many events do not reach."""
    count_N = np.zeros(num_items, dtype=np.int64)
    bounds = []
    for first, end in itertools.pairwise((0, *ends.tolist())):
        count_N += np.bincount(by_time_F[first:end], minlength=num_items)
        bounds.append(np.quantile(count_N[count_N > 0], FAME_SHARES))
    return bounds
