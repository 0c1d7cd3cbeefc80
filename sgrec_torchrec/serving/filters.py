"""What a request allows -> leaves of the trie, and a bound on items alike.

Letters: B users, F listed items of all users, H history items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sgrec_torchrec.generator.leaf_filter import LeafFilter
from sgrec_torchrec.generator.prefix_cap import PrefixCap
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import Int32Array, Int64Array
from sgrec_torchrec.serving.catalogue import ItemId, ServedCatalogue, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which items a request may get; all conditions hold together."""

    seen: bool | None = None
    """True leaves out what the history holds, also what is older than the network
    reads. None: as the model was trained and evaluated (``log.filter_seen``)."""
    blocked: Sequence[ItemId] = ()
    allowed: Sequence[ItemId] | None = None
    """Only these. None: all."""
    category: str | None = None
    """Only items of this category; see ``ServedCatalogue.items_of_category``."""
    max_per_prefix: int | None = None
    """At most so many items of a list share their first ``prefix_length`` codes."""
    prefix_length: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFilters:
    """Checked filters of one user, without what the history adds."""

    seen: bool
    blocked_F: Int64Array
    only_F: Int64Array | None
    """Sorted. None: all items."""
    max_per_prefix: int | None
    prefix_length: int


def check_filters(
    filters: Filters,
    catalogue: ServedCatalogue,
    num_levels: int,
    filter_seen: bool,
    where: str,
) -> KnownFilters:
    """Look ids and the category up.

    Raises:
        ValueError: naming the field, the entry and what to change.
    """
    if not isinstance(filters, Filters):
        raise ValueError(f"{where}: give Filters(...), not {type(filters).__name__}")
    if filters.seen is not None and not isinstance(filters.seen, bool):
        raise ValueError(f"{where}: seen = {shown(filters.seen)}: give True or False")
    only_F = None
    if filters.allowed is not None:
        only_F = np.sort(_listed(filters.allowed, catalogue, f"{where}: allowed"))
    if filters.category is not None:
        of_category = catalogue.items_of_category(filters.category)
        only_F = of_category if only_F is None else np.intersect1d(only_F, of_category)
    _check_count(filters.prefix_length, 1, num_levels, f"{where}: prefix_length")
    if filters.max_per_prefix is not None:
        name = f"{where}: max_per_prefix"
        _check_count(filters.max_per_prefix, 1, len(catalogue), name)
    return KnownFilters(
        seen=filter_seen if filters.seen is None else filters.seen,
        blocked_F=_listed(filters.blocked, catalogue, f"{where}: blocked"),
        only_F=only_F,
        max_per_prefix=filters.max_per_prefix,
        prefix_length=filters.prefix_length,
    )


def leaf_filter(
    trie: PrefixTrie, filters_B: Sequence[KnownFilters], seen_B: Sequence[Int32Array]
) -> LeafFilter | None:
    """The filters of a batch, with each user's seen items; None where nothing is out.

    A user's list is either what is allowed or, where no list or category asks for that,
    what is not.
    """
    listed: list[Int64Array] = []
    for filters, seen_H in zip(filters_B, seen_B, strict=True):
        out_F = filters.blocked_F
        if filters.seen:
            out_F = np.concatenate((out_F, seen_H.astype(np.int64)))
        if filters.only_F is not None:
            out_F = np.setdiff1d(filters.only_F, out_F, assume_unique=False)
        listed.append(out_F)
    only_B = [filters.only_F is not None for filters in filters_B]
    if not any(only_B) and not any(len(items) for items in listed):
        return None
    user_F = np.repeat(np.arange(len(listed)), [len(items) for items in listed])
    device = trie.item_of_leaf_N.device
    return LeafFilter.build(
        trie,
        torch.from_numpy(user_F).to(device),
        torch.from_numpy(np.concatenate(listed)).to(device),
        torch.tensor(only_B, device=device),
    )


def prefix_cap(trie: PrefixTrie, filters_B: Sequence[KnownFilters]) -> PrefixCap | None:
    """The bounds of a batch; None where no user has one."""
    if all(filters.max_per_prefix is None for filters in filters_B):
        return None
    device = trie.item_of_leaf_N.device
    length_B, count_B = [], []
    for filters in filters_B:
        is_free = filters.max_per_prefix is None
        length_B.append(trie.num_levels + 1 if is_free else filters.prefix_length)
        count_B.append(filters.max_per_prefix or 1)
    return PrefixCap(
        length_B=torch.tensor(length_B, device=device),
        count_B=torch.tensor(count_B, device=device),
    )


def _listed(
    item_ids: Sequence[ItemId], catalogue: ServedCatalogue, what: str
) -> Int64Array:
    if isinstance(item_ids, str | bytes) or not isinstance(
        item_ids, Sequence | np.ndarray
    ):
        raise ValueError(
            f"{what} is of type {type(item_ids).__name__}: give a list of item ids"
        )
    if len(item_ids) > len(catalogue):
        raise ValueError(
            f"{what} has {len(item_ids)} entries, the catalogue {len(catalogue)}: name "
            "every item once"
        )
    items_F = catalogue.indices(item_ids, f"{what} item")
    values, counts = np.unique(items_F, return_counts=True)
    if len(values) != len(items_F):
        twice = catalogue.item_ids[values[counts > 1][0]]
        raise ValueError(f"{what} names item {shown(twice)} twice: name it once")
    return items_F


def _check_count(value: object, low: int, high: int, what: str) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{what} = {shown(value)} is outside [{low}, {high}]")
