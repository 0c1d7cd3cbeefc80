"""Histories in, items out: one object over a trained run or a package.

``encode`` runs the tables and the backbone over histories, ``decode`` walks the trie. A
state that ``encode`` gave may be kept and handed back when the history has grown.
All on the CPU. No answer changes anything, so threads may share a recommender, and
another one may take its place at any moment.

Letters: B users, W beams, M evidence candidates.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.prior import Prior
from sgrec_torchrec.schema import Rollout
from sgrec_torchrec.serving.catalogue import ItemId, shown
from sgrec_torchrec.serving.encoder import UserState, encode
from sgrec_torchrec.serving.filters import (
    Filters,
    KnownFilters,
    check_filters,
    leaf_filter,
    prefix_cap,
)
from sgrec_torchrec.serving.history import History, KnownHistory, check_history
from sgrec_torchrec.serving.parts import Parts

logger = logging.getLogger(__name__)
MAX_USERS = 4096
"""Of one call."""
MAX_WIDTH = 4096
"""Most items of a list, and beams."""
CHUNK_PLACES = 1 << 22
"""Most (user, beam, code) places of one search, but for a single user's: bounds its
memory to some 200 MB."""
NO_FILTERS = Filters()
Histories = Sequence[History | KnownHistory | Sequence[ItemId]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """One user's list, best first: at most k items, fewer where filters leave fewer."""

    item_ids: list[str]
    titles: list[str]
    scores: list[float]
    """ln of the probability that the item is next, over the whole catalogue."""
    codes: list[tuple[int, ...]]
    num_events: int
    """Events that the caller gave."""
    num_read: int
    """The newest of them, which the network read."""
    num_unknown: int = 0
    """Events of items that the catalogue does not have, which were left out."""
    unknown: tuple[str, ...] = ()
    """The first of these items, quoted and cut."""


class Recommender:
    """Deterministic. A user's list is the same up to rounding whoever else is asked."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.settings = parts, parts.settings
        self.catalogue = parts.catalogue

    @classmethod
    def load(
        cls, path: str | Path, *, with_evidence: bool = True, compiled: bool = False
    ) -> "Recommender":
        """Read a package, a run's folder or a checkpoint; all sums are verified.

        A run stands for the checkpoint that its evaluation ranked with. Neither needs a
        process group, and a package not even torchrec.

        Args:
            path: where it lies.
            with_evidence: False leaves the evidence prior unread.
            compiled: run a package's compiled programs, which are native code of who
                made it: for packages of your own. Where it has none, or this host is
                not as the one that compiled, a line of the log says so, and the network
                runs as it is.

        Raises:
            FileNotFoundError: naming what is missing.
            ValueError: naming the file that is damaged or of another version.
        """
        from sgrec_torchrec.serving.package import (
            NO_PROGRAMS,
            WITHOUT,
            is_package,
            read_package,
        )

        path = Path(path)
        if is_package(path):
            return cls(
                read_package(path, with_evidence=with_evidence, compiled=compiled)
            )
        if compiled:
            logger.warning(WITHOUT, path, NO_PROGRAMS)
        # Here, not above: checkpoints need torchrec, packages do not.
        from sgrec_torchrec.serving.run_files import read_run

        return cls(read_run(path, with_evidence=with_evidence))

    @property
    def max_k(self) -> int:
        """The longest list that may be asked for."""
        return min(len(self.catalogue), MAX_WIDTH)

    def recommend(
        self,
        histories: Histories,
        k: int | Sequence[int] = 10,
        *,
        filters: Filters | Sequence[Filters] = NO_FILTERS,
        with_evidence: bool = True,
        strict: bool = False,
    ) -> list[Recommended]:
        """The k best next items of each user; ``encode`` and ``decode`` in one.

        A user without history is served too, by what the model gives at the begin.
        Events of items that the catalogue does not have, as of those that came after
        training, are left out and counted in the answer.

        Args:
            histories: item ids, oldest first, or ``History`` where more is known; one
                that ``check`` gave is not looked up again.
            k: for all users, or one each.
            filters: for all users, or one each.
            with_evidence: False asks the network alone.
            strict: True refuses a history with such an item, and so the whole call.

        Raises:
            ValueError: naming what to change.
        """
        # What is wrong with a request must not cost a pass of the network first.
        self._check_requests(_count(histories, "histories"), k, filters)
        states = self.encode(
            self._all_known(histories, strict), with_evidence=with_evidence
        )
        return self.decode(states, k, filters=filters, with_evidence=with_evidence)

    def check(
        self,
        history: History | Sequence[ItemId],
        where: str = "history",
        *,
        strict: bool = False,
    ) -> KnownHistory:
        """Look a history's items up once, for the calls that follow.

        Args:
            history: item ids, oldest first, or more.
            where: how errors call the history.
            strict: True refuses an item that the catalogue does not have; else its
                event is left out and counted.

        Raises:
            ValueError: naming the entry and what to change.
        """
        return check_history(
            history,
            self.catalogue,
            self.settings.event_types,
            where,
            self.parts.name,
            strict=strict,
        )

    def encode(
        self,
        histories: Histories,
        known: Sequence[UserState | None] | None = None,
        *,
        with_evidence: bool = True,
    ) -> list[UserState]:
        """What is known of each user after the whole history.

        Args:
            histories: as ``recommend``.
            known: per user an older state, or None. A state of the same history comes
                back as it is; one of a beginning of it is gone on from, at the cost of
                the new events, while the history fits ``settings.max_history``; any
                other is left aside, and so is one of another model.
            with_evidence: False skips the evidence; ``decode`` then must skip it too.

        Raises:
            ValueError: naming the entry and what to change.
        """
        num_users = _count(histories, "histories")
        known = [None] * num_users if known is None else known
        if len(known) != num_users:
            raise ValueError(f"known has {len(known)} states for {num_users} histories")
        checked = self._all_known(histories, strict=False)
        uses_evidence = self._weight(with_evidence) > 0
        return encode(self.parts, checked, known, with_evidence=uses_evidence)

    @torch.no_grad()
    def decode(
        self,
        states: Sequence[UserState],
        k: int | Sequence[int] = 10,
        *,
        filters: Filters | Sequence[Filters] = NO_FILTERS,
        with_evidence: bool = True,
    ) -> list[Recommended]:
        """The k best items of each state, by the beam that was evaluated.

        Raises:
            ValueError: naming what to change.
        """
        num_users = _count(states, "states")
        sizes, known = self._check_requests(num_users, k, filters)
        weight = self._weight(with_evidence)
        if any(state.made_by is not self.parts.name for state in states):
            raise ValueError("a state is of another model: encode the history again")
        if weight and any(state.candidates is None for state in states):
            raise ValueError(
                "with_evidence: these states were encoded without evidence; encode "
                "them with it, or leave it out here too"
            )
        found: dict[int, Recommended] = {}
        # A longer list needs more beams; those of the others must not depend on it.
        widths = [max(self.settings.beam_width, size) for size in sizes]
        for width in sorted(set(widths)):
            users = [user for user, own in enumerate(widths) if own == width]
            step = max(1, CHUNK_PLACES // (width * self.settings.num_codes))
            for first in range(0, len(users), step):
                chunk = users[first : first + step]
                asked = [states[user] for user in chunk]
                rollout = self._search(
                    asked, [known[user] for user in chunk], width, weight
                )
                lists = self._lists(rollout, asked, [sizes[user] for user in chunk])
                found |= zip(chunk, lists, strict=True)
        return [found[user] for user in range(num_users)]

    def _search(
        self,
        states: Sequence[UserState],
        filters: Sequence[KnownFilters],
        width: int,
        weight: float,
    ) -> Rollout:
        parts = self.parts
        candidates = [state.candidates for state in states if state.candidates]
        prior = None
        if weight:
            item_BM, probability_BM = zip(*candidates, strict=True)
            prior = Prior(
                item_BM=torch.from_numpy(np.stack(item_BM)).long(),
                probability_BM=torch.from_numpy(np.stack(probability_BM)),
                weight=weight,
            )
        seen_B = [state.history.items_H for state in states]
        return beam_search(
            parts.program or parts.network.tower.decoder,
            parts.trie,
            torch.stack([state.hidden_D for state in states]),
            width,
            prior=prior,
            allowed=leaf_filter(parts.trie, filters, seen_B),
            cap=prefix_cap(parts.trie, filters),
        )

    def _lists(
        self, rollout: Rollout, states: Sequence[UserState], sizes: Sequence[int]
    ) -> list[Recommended]:
        rows = zip(
            states,
            sizes,
            rollout.item_BG.tolist(),
            rollout.key_BG.tolist(),
            rollout.codes_BGL.tolist(),
            strict=True,
        )
        lists = []
        for state, size, items, scores, codes in rows:
            places = [place for place, item in enumerate(items) if item >= 0][:size]
            lists.append(
                Recommended(
                    item_ids=[self.catalogue.item_ids[items[at]] for at in places],
                    titles=[self.catalogue.titles[items[at]] for at in places],
                    scores=[scores[at] for at in places],
                    codes=[tuple(codes[at]) for at in places],
                    num_events=state.history.num_given,
                    num_read=min(len(state.history), self.settings.max_history),
                    num_unknown=state.history.num_unknown,
                    unknown=state.history.unknown,
                )
            )
        return lists

    def _all_known(self, histories: Histories, strict: bool) -> list[KnownHistory]:
        return [
            self._known(history, f"history {user}", strict)
            for user, history in enumerate(histories)
        ]

    def _known(
        self,
        history: History | KnownHistory | Sequence[ItemId],
        where: str,
        strict: bool,
    ) -> KnownHistory:
        if not isinstance(history, KnownHistory):
            return self.check(history, where, strict=strict)
        if history.made_by is not self.parts.name:
            raise ValueError(f"{where} was checked by another model: check it again")
        return history

    def _weight(self, with_evidence: bool) -> float:
        """The evidence's share; 0 where it is left out."""
        if self.parts.evidence is None or not with_evidence:
            return 0.0
        if self.settings.prior_weight is None:
            raise ValueError(
                "the run was not evaluated, so the evidence's weight is not known: run "
                "sgrec evaluate, or leave the evidence out"
            )
        return self.settings.prior_weight

    def _check_requests(
        self,
        num_users: int,
        k: int | Sequence[int],
        filters: Filters | Sequence[Filters],
    ) -> tuple[list[int], list[KnownFilters]]:
        sizes: list[Any] = list(k) if isinstance(k, list | tuple) else [k] * num_users
        if not isinstance(filters, Filters | list | tuple):
            raise ValueError(
                f"filters is of type {type(filters).__name__}: give Filters(...), or a "
                "list with one for each user"
            )
        is_shared = isinstance(filters, Filters)
        asked = [filters] if isinstance(filters, Filters) else list(filters)
        for name, count in (("k", len(sizes)), ("filters", len(asked))):
            if count != num_users and not (name == "filters" and is_shared):
                raise ValueError(f"{name} has {count} entries for {num_users} users")
        for size in sizes:
            is_whole = isinstance(size, int) and not isinstance(size, bool)
            if not is_whole or not 1 <= size <= self.max_k:
                raise ValueError(
                    f"k = {shown(size)} is outside [1, {self.max_k}]: the catalogue "
                    f"has {len(self.catalogue):,} items, a list at most {MAX_WIDTH}"
                )
        known = [
            check_filters(
                one,
                self.catalogue,
                self.settings.num_levels,
                self.settings.filter_seen,
                "filters" if is_shared else f"filters {user}",
            )
            for user, one in enumerate(asked)
        ]
        return sizes, known * num_users if is_shared else known


def _count(entries: object, name: str) -> int:
    if isinstance(entries, str | bytes) or not isinstance(entries, Sequence):
        raise ValueError(f"{name} is of type {type(entries).__name__}: give a list")
    if not 1 <= len(entries) <= MAX_USERS:
        raise ValueError(
            f"{name} has {len(entries)} entries: give 1 to {MAX_USERS} users a call"
        )
    return len(entries)
