"""The legal semantic IDs as a prefix trie of tensors: which code may follow a prefix.

A node is a prefix; nodes of a level are numbered in the order of their codes, so the
children of a node are contiguous, and leaf n is the n-th item in the order of SIDs.
Per node a level keeps one bit per code, in words of 64 codes, and per word the number
of its first child. A step costs the same at 1e4 and at 1e8 items; memory is
min(N, K^(L-1)) * K * 3 / 16 bytes for the words (201 MB at N = 1e8, K = 1024, L = 3),
4 bytes an item for the leaves and 4 L for the codes.

Letters: N items, L levels, K codes, X any leading shape.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgrec_torchrec.schema import Int32Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTrie:
    """Build with ``PrefixTrie.build``. All tensors lie on one device."""

    legal_bits: tuple[Tensor, ...]
    """Per level, uint8 [num_nodes, 8 * ceil(K / 64)]: bit c of a row (bit c % 8 of
    byte c // 8) tells if c may follow."""
    first_child: tuple[Tensor, ...]
    """Per level, int32 [num_nodes, ceil(K / 64)]: number that the first child below
    each word of 64 codes has, or would have."""
    item_of_leaf_N: Tensor
    """int32: the item of each leaf."""
    codes_NL: Tensor
    """int32: the codes of each item."""
    log_mask_table: Tensor
    """float32 [2^16, 16]: for each 16 bits of ``legal_bits``, read as int16 and counted
    from -2^15, 0 where a bit is set, else -inf."""
    num_codes: int

    @property
    def num_items(self) -> int:
        """N."""
        return self.item_of_leaf_N.shape[0]

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.legal_bits)

    @staticmethod
    def build(codes_NL: Int32Array, num_codes: int) -> "PrefixTrie":
        """The trie of a catalogue without collisions. O(N log N) time, on the CPU.

        Raises:
            ValueError: if the catalogue is empty or two items share all codes.
        """
        num_items, num_levels = codes_NL.shape
        if num_items == 0:
            raise ValueError("codes_NL has no rows: a trie needs at least one item")
        order_N = np.lexsort(codes_NL.T[::-1])
        sorted_NL = codes_NL[order_N].astype(np.int64)
        node_N = np.zeros(num_items, dtype=np.int64)
        bits, first_child = [], []
        for level in range(num_levels):
            is_new_N = np.ones(num_items, dtype=bool)
            is_new_N[1:] = (np.diff(node_N) != 0) | (np.diff(sorted_NL[:, level]) != 0)
            parents, codes = node_N[is_new_N], sorted_NL[is_new_N, level]
            bits.append(_pack(parents, codes, int(node_N[-1]) + 1, num_codes))
            first_child.append(
                _first_children(parents, codes, len(bits[-1]), num_codes)
            )
            node_N = np.cumsum(is_new_N) - 1
        if node_N[-1] + 1 != num_items:
            clash = int(np.flatnonzero(np.diff(node_N) == 0)[0])
            raise ValueError(
                f"items {order_N[clash]} and {order_N[clash + 1]} share the codes "
                f"{codes_NL[order_N[clash]].tolist()}: resolve collisions first"
            )
        return PrefixTrie(
            legal_bits=tuple(torch.from_numpy(rows) for rows in bits),
            first_child=tuple(torch.from_numpy(starts) for starts in first_child),
            item_of_leaf_N=torch.from_numpy(order_N.astype(np.int32)),
            codes_NL=torch.from_numpy(codes_NL.astype(np.int32)),
            log_mask_table=_log_masks(),
            num_codes=num_codes,
        )

    def to(self, device: torch.device) -> "PrefixTrie":
        """A copy on ``device``."""
        return PrefixTrie(
            legal_bits=tuple(rows.to(device) for rows in self.legal_bits),
            first_child=tuple(starts.to(device) for starts in self.first_child),
            item_of_leaf_N=self.item_of_leaf_N.to(device),
            codes_NL=self.codes_NL.to(device),
            log_mask_table=self.log_mask_table.to(device),
            num_codes=self.num_codes,
        )

    def log_mask(self, level: int, node_X: Tensor) -> Tensor:
        """float32 [X, K]: 0 where code k may follow node x of ``level``, else -inf."""
        bits = self.legal_bits[level].view(torch.int16)
        bits = bits.index_select(0, node_X.flatten()).flatten()
        mask = self.log_mask_table.index_select(0, bits.int().add_(1 << 15))
        return mask.view(*node_X.shape, -1)[..., : self.num_codes]

    def child(self, level: int, node_X: Tensor, code_X: Tensor) -> Tensor:
        """int64 [X]: where ``code_X`` leads to; any valid node if it is illegal."""
        words = self.legal_bits[level].view(torch.int64)
        place_X = node_X * words.shape[1] + (code_X >> 6)
        before_X = words.take(place_X) & ((1 << (code_X & 63)) - 1)
        child_X = self.first_child[level].take(place_X) + _popcount(before_X)
        num_children = (
            self.first_child[level + 1].shape[0]
            if level + 1 < self.num_levels
            else self.num_items
        )
        return child_X.clamp_(max=num_children - 1)

    def prefix_nodes(self, codes_XL: Tensor) -> Tensor:
        """int64 [X, L]: the node from which each code of a legal SID is chosen."""
        node_X = torch.zeros_like(codes_XL[..., 0], dtype=torch.int64)
        nodes = [node_X]
        for level in range(self.num_levels - 1):
            node_X = self.child(level, node_X, codes_XL[..., level].long())
            nodes.append(node_X)
        return torch.stack(nodes, dim=-1)

    def leaf_range(self, level: int, node_X: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [X] twice: the leaves below a node are ``[start, end)``.

        ``level`` is the length of the node's prefix; at L a node is a leaf itself.
        """
        num_nodes = (
            self.first_child[level].shape[0]
            if level < self.num_levels
            else self.num_items
        )
        is_last_X = node_X + 1 == num_nodes
        end_X = self._first_leaf(level, (node_X + 1).clamp(max=num_nodes - 1))
        return (
            self._first_leaf(level, node_X),
            end_X.masked_fill(is_last_X, self.num_items),
        )

    def _first_leaf(self, level: int, node_X: Tensor) -> Tensor:
        for starts in self.first_child[level:]:
            node_X = starts.take(node_X * starts.shape[1]).long()
        return node_X


def _pack(
    parents: Int64Array, codes: Int64Array, num_nodes: int, num_codes: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    num_bytes = _row_bytes(num_codes)
    bits = np.zeros(num_nodes * num_bytes, dtype=np.uint8)
    place = parents * num_bytes + codes // 8
    np.add.at(bits, place, (1 << (codes % 8)).astype(np.uint8))
    return bits.reshape(num_nodes, num_bytes)


def _first_children(
    parents: Int64Array, codes: Int64Array, num_nodes: int, num_codes: int
) -> Int32Array:
    """Children are numbered by parent, then code: a running count over the words."""
    words = _row_bytes(num_codes) // 8
    counts = np.bincount(parents * words + codes // 64, minlength=num_nodes * words)
    firsts = np.cumsum(counts) - counts
    return firsts.astype(np.int32).reshape(num_nodes, words)


@functools.cache
def _log_masks() -> Tensor:
    """Of all tries of a process; nobody writes to it."""
    is_set = (torch.arange(-(1 << 15), 1 << 15)[:, None] >> torch.arange(16)) & 1
    return torch.where(is_set.bool(), 0.0, float("-inf"))


def _row_bytes(num_codes: int) -> int:
    """Whole 64-bit words, so that bits can be counted word by word."""
    return 8 * -(-num_codes // 64)


def _popcount(word_X: Tensor) -> Tensor:
    """int64 -> int64: bits set, by sums in ever wider fields (Hacker's Delight 5-1)."""
    word_X = word_X - ((word_X >> 1) & 0x5555555555555555)
    word_X = (word_X & 0x3333333333333333) + ((word_X >> 2) & 0x3333333333333333)
    word_X = (word_X + (word_X >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (word_X * 0x0101010101010101) >> 56
