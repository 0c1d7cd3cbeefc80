"""The catalogue of a server: item ids <-> dense indices, titles, categories."""

import difflib
import re
from collections.abc import Sequence

import numpy as np

from sgrec_torchrec.logs.importers.clean_text import resolve_entities
from sgrec_torchrec.schema import Int64Array

PARTS = re.compile(r"\s*[,|;>]\s*")
"""What separates the parts of a category, as in ``Comedy, Drama`` or ``Home > Tea``."""
SHOWN_IDS = 3
SHOWN_CHARACTERS = 60
ItemId = str | int


class ServedCatalogue:
    """Items in dense order. Grows with the catalogue: some 300 bytes an item."""

    def __init__(
        self,
        item_ids: Sequence[str],
        titles: Sequence[str],
        categories: Sequence[str],
        source: str,
    ) -> None:
        """Take the columns over; ``source`` names them in errors.

        Raises:
            ValueError: if two items share an id.
        """
        self.item_ids, self.categories = list(item_ids), list(categories)
        self.titles = [resolve_entities(title) for title in titles]
        self._index: dict[str | None, int] = {
            item_id: item for item, item_id in enumerate(self.item_ids)
        }
        if len(self._index) != len(self.item_ids):
            second = next(
                item
                for item, item_id in enumerate(self.item_ids)
                if self._index[item_id] != item
            )
            raise ValueError(
                f"{source} names item {shown(self.item_ids[second])} twice: every item "
                "needs an id of its own"
            )
        self._by_category: dict[str, Int64Array] | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    def find(self, item_ids: Sequence[ItemId], what: str) -> Int64Array:
        """Dense indices, int64; -1 where the catalogue has no such item.

        Integers stand for their decimal text.

        Args:
            item_ids: text or integers.
            what: how errors call an entry, as "history item".

        Raises:
            ValueError: naming the first entry that is of another type.
        """
        try:
            found = [self._index.get(as_text(item_id), -1) for item_id in item_ids]
        except TypeError as error:
            raise ValueError(f"{what}: {error}; give texts or integers") from None
        return np.array(found, dtype=np.int64)

    def indices(self, item_ids: Sequence[ItemId], what: str) -> Int64Array:
        """As ``find``, where every item must be known.

        Raises:
            ValueError: naming the first entries that are of another type or unknown.
        """
        found = self.find(item_ids, what)
        places = np.flatnonzero(found < 0)
        if len(places):
            names = [shown(item_ids[place]) for place in places[:SHOWN_IDS]]
            named = few(names, len(places))
            raise ValueError(
                f"{what} {named} (place {places[0]}) is not in the catalogue of "
                f"{len(self):,} items: leave it out, or load a newer model"
            )
        return found

    def items_of_category(self, category: str) -> Int64Array:
        """Indices of the items whose category, or a part of it, has this name.

        Whatever the case. ``Comedy`` takes the items of ``Comedy, Drama`` too.

        Raises:
            ValueError: for a category that no item has, naming similar ones.
        """
        if not isinstance(category, str):
            raise ValueError(f"category = {shown(category)}: give its name as a text")
        groups = self._groups()
        items = groups.get(category.strip().casefold())
        if items is None:
            known = difflib.get_close_matches(category.casefold(), groups, 3, 0.4)
            known = known or list(groups)[:SHOWN_IDS]
            hint = ", ".join(known) if known else "this catalogue has no categories"
            raise ValueError(f"category {shown(category)} is unknown; near it: {hint}")
        return items

    def _groups(self) -> dict[str, Int64Array]:
        if self._by_category is None:
            members: dict[str, list[int]] = {}
            for item, category in enumerate(self.categories):
                whole = category.strip().casefold()
                for name in {whole, *PARTS.split(whole)} - {""}:
                    members.setdefault(name, []).append(item)
            self._by_category = {
                name: np.array(items, dtype=np.int64) for name, items in members.items()
            }
        return self._by_category


def shown(value: object) -> str:
    """``value`` as an error may print it: quoted and cut."""
    if isinstance(value, int) and value.bit_length() > 256:
        # Python refuses to print integers of many digits.
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}..."
    return text


def few(names: Sequence[str], count: int) -> str:
    """The first names of ``count`` things, and how many more there are."""
    left = count - len(names)
    return ", ".join(names) + (f" and {left} more" if left > 0 else "")


def as_text(item_id: object) -> str | None:
    """An id as the catalogue keeps it; None for a number that no catalogue holds.

    Raises:
        TypeError: for what is neither a text nor a whole number.
    """
    if isinstance(item_id, str):
        return item_id
    if isinstance(item_id, int | np.integer) and not isinstance(item_id, bool):
        number = int(item_id)
        # Python prints no integer of many digits; no catalogue holds one either.
        return str(number) if number.bit_length() <= 64 else None
    raise TypeError(f"{shown(item_id)} is of type {type(item_id).__name__}")
