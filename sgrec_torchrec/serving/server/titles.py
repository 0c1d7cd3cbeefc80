"""Titles of a catalogue: searched by text, and histories to try the page with."""

import bisect
from collections.abc import Sequence

import numpy as np

from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.serving.catalogue import ServedCatalogue
from sgrec_torchrec.serving.server.wire import Example, Known

MAX_MATCHES = 1_000
"""Matches of a search that are ranked."""
NUM_EXAMPLES = 6
EXAMPLE_LENGTH = 5
BREAK = "\n"


class Titles:
    """Some 2 bytes a letter; a search reads them once, at the speed of ``str.find``."""

    def __init__(self, catalogue: ServedCatalogue, trie: PrefixTrie) -> None:
        self.catalogue = catalogue
        self.codes_NL = trie.codes_NL.numpy()
        lines = [
            f"{title} {item_id}".replace(BREAK, " ").casefold()
            for title, item_id in zip(catalogue.titles, catalogue.item_ids, strict=True)
        ]
        sizes = np.array([len(line) + 1 for line in lines], dtype=np.int64)
        self._starts = np.append(0, np.cumsum(sizes))
        self._text = BREAK.join(lines)

    def search(self, query: str, limit: int) -> list[int]:
        """Items whose title or id has the text: those that begin with it first."""
        wanted = query.replace(BREAK, " ").casefold().strip()
        found: list[tuple[bool, bool, int, int]] = []
        place = self._text.find(wanted) if wanted else -1
        while place >= 0 and len(found) < MAX_MATCHES:
            item = bisect.bisect_right(self._starts, place) - 1
            first, end = int(self._starts[item]), int(self._starts[item + 1])
            is_within_word = place > first and self._text[place - 1].isalnum()
            found.append((place > first, is_within_word, end - first, item))
            place = self._text.find(wanted, end)
        return [item for *_, item in sorted(found)[:limit]]

    def known(self, items: Sequence[int]) -> list[Known]:
        """The items as an answer shows them."""
        catalogue = self.catalogue
        return [
            Known(
                item_id=catalogue.item_ids[item],
                title=catalogue.titles[item],
                category=catalogue.categories[item],
                codes=self.codes_NL[item].tolist(),
            )
            for item in items
        ]

    def examples(self) -> list[Example]:
        """Items side by side in the order of their codes; the same every time."""
        order = np.lexsort(self.codes_NL.T[::-1])
        count = min(NUM_EXAMPLES, len(order))
        firsts = np.linspace(0, len(order), count, endpoint=False, dtype=np.int64)
        made = []
        for first in firsts:
            items = order[first : first + EXAMPLE_LENGTH].tolist()
            named = self.catalogue.titles[items[0]] or self.catalogue.item_ids[items[0]]
            made.append(Example(name=f"Around {named}", items=self.known(items)))
        return made
