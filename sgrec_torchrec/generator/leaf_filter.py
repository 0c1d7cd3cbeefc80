"""Which items each user may get, asked prefix by prefix while a beam walks the trie.

A user lists items: only these may be returned, or all but these. For every prefix of a
listed item it is counted how many leaves below it are listed; so a prefix is known to
be empty as soon as the beam could choose it. Work and memory grow with the listed items
(18 bytes per level of each), not with the catalogue.

Letters: B users, F listed items of all users, W beams, L levels, K codes, H history
items.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie

NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFilter:
    """Build with ``LeafFilter.build`` or ``LeafFilter.without``."""

    only_B: Tensor
    """bool: the user may get the listed items alone; else all but those."""
    user_F: Tensor
    """int64, by user, then leaf."""
    parent_FL: Tensor
    """int64: the node from which each code of a listed item is chosen."""
    code_FL: Tensor
    """int32."""
    decides_FL: Tensor
    """bool: whether the listed item decides on the child that this code leads to. One
    that is allowed is alive with any listed item below it; one that is ruled out is
    dead when all items below it are listed."""

    @staticmethod
    def without(trie: PrefixTrie, item_BH: Tensor) -> "LeafFilter":
        """All but the items of a row of ``item_BH`` (int64, -1 for none)."""
        user_BH = torch.arange(len(item_BH), device=item_BH.device)[:, None]
        only_B = torch.zeros(len(item_BH), dtype=torch.bool, device=item_BH.device)
        user_F = user_BH.expand_as(item_BH).flatten()
        return LeafFilter.build(trie, user_F, item_BH.flatten(), only_B)

    @staticmethod
    def build(
        trie: PrefixTrie, user_F: Tensor, item_F: Tensor, only_B: Tensor
    ) -> "LeafFilter":
        """Items listed in any order, also repeatedly; -1 lists nothing.

        O(F (log F + L)) without waiting for the device; ranks do not communicate.

        Args:
            trie: the catalogue.
            user_F: int64 in [0, B).
            item_F: int64 in [-1, N).
            only_B: bool; a user without a listed item and with True gets nothing.
        """
        span = trie.num_items + 1
        codes_FL = trie.codes_NL[item_F.clamp(min=0)].long()
        leaf_F = _leaves(trie, codes_FL).masked_fill(item_F < 0, trie.num_items)
        key_F, order_F = (user_F * span + leaf_F).sort()
        user_F, leaf_F, codes_FL = user_F[order_F], leaf_F[order_F], codes_FL[order_F]
        is_new_F = leaf_F < trie.num_items
        is_new_F[1:] &= key_F[1:] != key_F[:-1]
        before_F1 = torch.nn.functional.pad(is_new_F.cumsum(0), (1, 0))
        parent_FL = trie.prefix_nodes(codes_FL)
        columns = []
        for level in range(trie.num_levels):
            child_F = trie.child(level, parent_FL[:, level], codes_FL[:, level])
            start_F, end_F = trie.leaf_range(level + 1, child_F)
            first_F = torch.searchsorted(key_F, user_F * span + start_F)
            last_F = torch.searchsorted(key_F, user_F * span + end_F)
            num_listed_F = before_F1[last_F] - before_F1[first_F]
            is_whole_F = num_listed_F == end_F - start_F
            columns.append(is_new_F & (only_B[user_F] | is_whole_F))
        return LeafFilter(
            only_B=only_B,
            user_F=user_F,
            parent_FL=parent_FL,
            code_FL=codes_FL.int(),
            decides_FL=torch.stack(columns, dim=1),
        )

    def rule_out(
        self, level: int, node_BW: Tensor, key_BW: Tensor, total_BWK: Tensor
    ) -> Tensor:
        """``total_BWK`` with -inf at codes below which no allowed item lies.

        Args:
            level: of the code that is chosen.
            node_BW: int64, where each beam stands.
            key_BW: float, -inf at dead beams, whose node means nothing.
            total_BWK: float, what orders the next beams.
        """
        num_users, width, num_codes = total_BWK.shape
        span = 1 << 32
        user_B1 = torch.arange(num_users, device=node_BW.device)[:, None] * span
        # A dead beam may stand on the node of a living one: it must not be found.
        is_dead_BW = key_BW == NEVER
        node_BW = node_BW.masked_fill(is_dead_BW, span - 1)
        sorted_P, slot_P = (user_B1 + node_BW).flatten().sort()
        wanted_F = self.user_F * span + self.parent_FL[:, level]
        place_F = torch.searchsorted(sorted_P, wanted_F).clamp(max=len(sorted_P) - 1)
        is_found_F = (sorted_P[place_F] == wanted_F) & self.decides_FL[:, level]
        nowhere = num_users * width * num_codes
        target_F = slot_P[place_F] * num_codes + self.code_FL[:, level]
        hits_P = torch.zeros(nowhere + 1, dtype=torch.bool, device=node_BW.device)
        hits_P[target_F.masked_fill(~is_found_F, nowhere)] = True
        is_out_BWK = hits_P[:-1].view_as(total_BWK) != self.only_B[:, None, None]
        # A prior may have mass below a prefix that was ruled out: it stays so.
        return total_BWK.masked_fill(is_out_BWK | is_dead_BW[..., None], NEVER)


def _leaves(trie: PrefixTrie, codes_FL: Tensor) -> Tensor:
    """int64 [F]: place of each item in the order of SIDs."""
    last = trie.num_levels - 1
    return trie.child(last, trie.prefix_nodes(codes_FL)[:, last], codes_FL[:, last])
