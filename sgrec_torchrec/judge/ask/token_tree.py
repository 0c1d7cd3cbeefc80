"""One user's prompts as a tree of tokens: what they share is computed once.

    shared --+-- candidate 0 --+-- question 0 [-- answer]
             |                 +-- question 1 [-- answer]
             +-- candidate 1 --+-- ...

The branches lie one after the other in one sequence. A token attends to its ancestors
alone and its position counts them, so every branch gets exactly what it would get as a
prompt of its own (up to rounding), at the cost of the tree's tokens: with 8 candidates
of 4 questions, a twelfth. No weights depend on it: any causal model that takes a 4-d
mask and positions will do.

Letters: T tokens of a tree, B trees of a batch, C candidates, Q questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that no loss looks at, as transformers counts."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens below a parent branch (-1: the root), to learn where an answer."""

    parent: int
    tokens: tuple[int, ...]
    is_answer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """Branches laid end to end.

    ``token_T`` int64, ``position_T`` int64 (number of ancestors), ``branch_T`` int64,
    ``ancestor_RR`` bool [R, R]: does branch r see branch s (itself included),
    ``end_R`` int64: index of each branch's last token, ``label_T`` int64.
    """

    token_T: Tensor
    position_T: Tensor
    branch_T: Tensor
    ancestor_RR: Tensor
    end_R: Tensor
    label_T: Tensor

    @staticmethod
    def of(branches: Sequence[Branch]) -> "TokenTree":
        """Lay the branches out; parents stand before their children.

        Raises:
            ValueError: for an empty branch, or one before its parent.
        """
        ancestors = torch.eye(len(branches), dtype=torch.bool)
        start_at: list[int] = []
        tokens: list[int] = []
        positions: list[int] = []
        labels: list[int] = []
        owner: list[int] = []
        for index, branch in enumerate(branches):
            if not branch.tokens or branch.parent >= index:
                raise ValueError(f"branch {index}: empty, or before its parent")
            first = 0
            if branch.parent >= 0:
                ancestors[index] |= ancestors[branch.parent]
                first = start_at[branch.parent] + len(branches[branch.parent].tokens)
            start_at.append(first)
            tokens += branch.tokens
            positions += range(first, first + len(branch.tokens))
            owner += [index] * len(branch.tokens)
            labels += (
                branch.tokens if branch.is_answer else [IGNORED] * len(branch.tokens)
            )
        lengths = torch.tensor([len(branch.tokens) for branch in branches])
        return TokenTree(
            token_T=torch.tensor(tokens),
            position_T=torch.tensor(positions),
            branch_T=torch.tensor(owner),
            ancestor_RR=ancestors,
            end_R=lengths.cumsum(0) - 1,
            label_T=torch.tensor(labels),
        )

    def __len__(self) -> int:
        return len(self.token_T)

    def mask_TT(self) -> Tensor:
        """bool [T, T]: may the row's token attend to the column's?

        An answer's first token must be predicted by its question's last one: labels
        are shifted by one place, so an answer follows its question at once.
        """
        place_T = torch.arange(len(self))
        sees = self.ancestor_RR[self.branch_T][:, self.branch_T]
        return sees & (place_T[:, None] >= place_T)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBatch:
    """Padded trees: what a causal model of transformers takes.

    ``input_ids``, ``position_ids``, ``labels`` int64 [B, T]; ``attention_mask`` bool
    [B, 1, T, T], padding attends to itself alone.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @staticmethod
    def of(trees: Sequence[TokenTree], padding_token: int) -> "TreeBatch":
        """Pad on the right to the longest tree. Memory grows with B T^2 bytes."""
        shape = (len(trees), max(len(tree) for tree in trees))
        ids = torch.full(shape, padding_token)
        positions = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED)
        mask = torch.eye(shape[1], dtype=torch.bool).repeat(len(trees), 1, 1)
        for row, tree in enumerate(trees):
            length = len(tree)
            ids[row, :length] = tree.token_T
            positions[row, :length] = tree.position_T
            labels[row, :length] = tree.label_T
            mask[row, :length, :length] = tree.mask_TT()
        return TreeBatch(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask[:, None],
            labels=labels,
        )
