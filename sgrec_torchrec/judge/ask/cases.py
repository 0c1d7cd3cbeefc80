"""What is to be judged -> prompts: a user's history up to a point, and candidates.

A case shows nothing of its user from the request on, and nothing of other users'
choices that came later than the request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.judge.ask.aspects import Aspect, asked_aspects
from sgrec_torchrec.judge.ask.likeness import LikenessGrader
from sgrec_torchrec.judge.ask.past_choices import PastChoices
from sgrec_torchrec.judge.ask.prompt import (
    Asked,
    Grades,
    PastItem,
    PromptSettings,
    ShownItem,
    UserPrompt,
    user_prompt,
)
from sgrec_torchrec.logs.judged_users import prefix_hash
from sgrec_torchrec.schema import SplitLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One user at one time, and the items asked about (dense indices)."""

    user: int
    as_of: int
    """Number of the user's events that may be seen: all strictly before the request."""
    request_timestamp: int
    items: tuple[int, ...]


class CaseReader:
    """Turns cases of one log into prompts. Memory: 20 bytes a train event."""

    def __init__(self, split: SplitLog, settings: PromptSettings) -> None:
        self.split = split
        self.settings = settings
        self.has_clock = split.sequences.has_clock
        self._kinds_of_item: dict[int, tuple[str, ...]] = {}
        self._choices = PastChoices(split.sequences)

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
            self._candidates(case, items),
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
        return taken(self.split.catalogue.item_ids, self.history(case)[0])

    def history_hash(self, case: Case) -> int:
        """Names the history, as candidates and reward table do."""
        return prefix_hash(self.split, case.user, case.as_of)

    def popularity(self, item: int, now: int) -> int:
        """Train events of the item before ``now``; of all, where there is no clock."""
        return self._choices.before(item, now)

    def together(self, case: Case) -> list[int]:
        """Grade of each item by those who chose both it and the user's past choices."""
        past, now = self.history(case)[0], case.request_timestamp
        return self._choices.together(case.items, past, case.user, now)

    def num_alike(self, item: int, past: Sequence[int]) -> int:
        """How many past items share a category (or the brand) with the item."""
        own = set(self._kinds(item))
        return sum(not own.isdisjoint(self._kinds(other)) for other in past)

    def _kinds(self, item: int) -> tuple[str, ...]:
        """Its categories, else its brand: of items that a case shows, read once."""
        kinds = self._kinds_of_item.get(item)
        if kinds is None:
            catalogue = self.split.catalogue
            kinds = _kinds(catalogue.categories[item]) or _kinds(catalogue.brands[item])
            self._kinds_of_item[item] = kinds
        return kinds

    def _candidates(self, case: Case, past: Sequence[int]) -> list[ShownItem]:
        now = case.request_timestamp
        plain = [
            self._shown(item, now if self.has_clock else None) for item in case.items
        ]
        if not past or not case.items or not self.settings.shows_grades:
            return plain
        grader, titles = self.grader, self.split.catalogue.titles
        alike = grader.likeness(case.items, past)
        together = self.together(case)
        familiar = self._choices.familiarity(case.items, past, now)
        return [
            replace(
                shown,
                grades=Grades(
                    newest=grader.grade("newest_C", alike.newest_C[place]),
                    latest=grader.grade("latest_C", alike.latest_C[place]),
                    nearest=grader.grade("nearest_C", alike.nearest_C[place]),
                    together=together[place],
                    familiar=familiar[place],
                    nearest_title=titles[alike.nearest_item_C[place]],
                ),
            )
            for place, shown in enumerate(plain)
        ]

    def _shown(self, item: int, now: int | None) -> ShownItem:
        fame = None if now is None else self._choices.fame(item, now)
        title = self.split.catalogue.titles[item]
        return ShownItem(title=title, kinds=self._kinds(item), fame=fame)


def _kinds(text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)
