"""The records that cross stages: what one stage writes and the next one reads.

Shape letters: U users, N items, R log rows (events), E evaluation rows, B sequences
of a batch, T positions of a batch (all sequences end to end), S targets of a batch,
L code levels, K codes per level, G rollouts per user. Nothing here imports torchrec, so
that a server may read these records without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Texts = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """All users' events in CSR form, ordered by user, then time, then seeded shuffle.

    Items are dense indices in [0, num_items). User u owns rows
    ``offsets_U1[u] : offsets_U1[u + 1]``; of these the first ``train_end_U[u]`` are
    the train period, the first ``valid_end_U[u]`` train and valid together. Both cuts
    lie between baskets (rows of one user at one timestamp). Grows with the log: 18
    bytes a row.
    """

    offsets_U1: Int64Array
    items_R: Int32Array
    timestamps_R: Int64Array
    events_R: Int16Array
    values_R: Float32Array
    train_end_U: Int32Array
    valid_end_U: Int32Array
    num_items: int
    num_event_types: int
    has_clock: bool
    """False where timestamps are mere ordinals: then gaps between them mean nothing."""
    has_value: bool

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets_U1) - 1

    def events_until(self, end_U: Int32Array) -> tuple[Int64Array, Int64Array]:
        """User and row of the first ``end_U[u]`` events of each user, by rising row.

        Two int64 arrays of sum(end_U) entries.
        """
        length_U = end_U.astype(np.int64)
        user = np.repeat(np.arange(self.num_users), length_U)
        first = np.repeat(np.cumsum(length_U) - length_U, length_U)
        row: Int64Array = self.offsets_U1[user] + np.arange(len(user)) - first
        return user, row

    def validate(self) -> None:
        """Check ranges and monotonicity once, where data enters the process.

        Raises:
            ValueError: naming the first user or row that breaks the contract.
        """
        lengths_U = np.diff(self.offsets_U1)
        if self.offsets_U1[0] != 0 or (lengths_U < 0).any():
            raise ValueError("offsets_U1: must start at 0 and never fall")
        if self.offsets_U1[-1] != len(self.items_R):
            raise ValueError(
                f"offsets_U1 ends at {self.offsets_U1[-1]}, items_R has "
                f"{len(self.items_R)} rows"
            )
        bad = np.flatnonzero((self.items_R < 0) | (self.items_R >= self.num_items))
        if len(bad):
            raise ValueError(
                f"items_R[{bad[0]}] = {self.items_R[bad[0]]} is outside "
                f"[0, {self.num_items}): map ids through the catalogue first"
            )
        for name, ends in (("train", self.train_end_U), ("valid", self.valid_end_U)):
            bad = np.flatnonzero((ends < 0) | (ends > lengths_U))
            if len(bad):
                raise ValueError(
                    f"{name}_end_U[{bad[0]}] = {ends[bad[0]]} is outside "
                    f"[0, {lengths_U[bad[0]]}]"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRows:
    """Evaluation rows: given a prefix of a user's sequence, rank the true next item.

    Positions count from the user's first event: the history of row e is
    ``[history_start_E[e], history_end_E[e])`` of user ``user_E[e]`` and ends strictly
    before the target's timestamp.
    """

    user_E: Int64Array
    history_start_E: Int32Array
    history_end_E: Int32Array
    target_E: Int32Array
    target_timestamp_E: Int64Array

    def __len__(self) -> int:
        return len(self.user_E)

    def take(self, rows: Int64Array) -> "EvalRows":
        """The given rows, in the given order."""
        return EvalRows(
            user_E=self.user_E[rows],
            history_start_E=self.history_start_E[rows],
            history_end_E=self.history_end_E[rows],
            target_E=self.target_E[rows],
            target_timestamp_E=self.target_timestamp_E[rows],
        )

    def with_history(self, max_history: int) -> "EvalRows":
        """The same rows; histories are the newest ``max_history`` events, if so many.

        They end where they did, so nothing newer is shown.
        """
        start_E = np.maximum(self.history_end_E - max_history, 0)
        return replace(self, history_start_E=start_E.astype(np.int32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The items in dense order: row n describes item index n.

    ``texts`` is title, brand, category and description joined for an encoder;
    ``embedding_ND`` and ``sid_NL`` are the user's own, if ``items.parquet`` has them.
    A split's texts are ``files.text_column.TextColumn``, read where they are asked for.
    """

    item_ids: Texts
    titles: Texts
    brands: Texts
    categories: Texts
    texts: Texts
    embedding_ND: Float32Array | None
    sid_NL: Int32Array | None

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLog:
    """A prepared log: what every later stage reads. See ``logs.split``."""

    sequences: Sequences
    valid: EvalRows
    test: EvalRows
    catalogue: Catalogue
    user_ids: Texts
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTokens:
    """Semantic IDs: codes_NL[n] are item n's L codes, each in [0, num_codes)."""

    codes_NL: Int32Array
    num_codes: int

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.codes_NL)

    @property
    def num_levels(self) -> int:
        """L."""
        return int(self.codes_NL.shape[1])

    def validate(self) -> None:
        """Check that codes are in range and that no two items share all codes.

        Raises:
            ValueError: naming the first offending item.
        """
        bad = np.argwhere((self.codes_NL < 0) | (self.codes_NL >= self.num_codes))
        if len(bad):
            item, level = bad[0]
            raise ValueError(
                f"item {item}: code {self.codes_NL[item, level]} at level {level} is "
                f"outside [0, {self.num_codes})"
            )
        key_N = np.zeros(self.num_items, dtype=np.int64)
        for level in range(self.num_levels):
            key_N = key_N * self.num_codes + self.codes_NL[:, level]
        order = np.argsort(key_N, kind="stable")
        same = np.flatnonzero(key_N[order][1:] == key_N[order][:-1])
        if len(same):
            raise ValueError(
                f"items {order[same[0]]} and {order[same[0] + 1]} share the codes "
                f"{self.codes_NL[order[same[0]]].tolist()}: resolve collisions first"
            )


class StepOutput(NamedTuple):
    """Detached figures of one training forward, per rank."""

    loss: Tensor
    """float scalar: this rank's share; its mean over ranks is the global loss."""
    level_loss_L: Tensor
    """float [L]: the same, by code level."""
    num_positions: Tensor
    """float scalar: history positions of this rank's batch."""


class LearningBatch(Protocol):
    """What the generator trains on: positions, targets, and what to make of them."""

    features: "KeyedJaggedTensor"
    position_key_T: Tensor | None
    """int64: seeds the dropout; None: there is none."""
    trains_tables: bool
    asks_ends: bool
    """Whole histories are asked, not positions of them; then there is no dropout."""
    target_context_S: Tensor
    """int64: the position, or the history, that each target asks."""
    target_item_S: Tensor
    """int64 item index in [0, N)."""

    def output(self, logprob_SL: Tensor, num_positions: int) -> StepOutput:
        """The loss, given log-probabilities float [S, L] of the targets' codes."""
        ...


def feature_names(num_levels: int) -> list[str]:
    """Keys of ``logs.token_batch.TokenBatch.features``, in order."""
    codes = [f"code_{level}" for level in range(num_levels)]
    return ["item", *codes, "gap", "event", "value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """G items drawn or searched for each of B users, best first.

    ``logprob_BG`` is the natural log of the item's probability under the
    trie-constrained policy at temperature 1; ``logprob_sampling_BG`` the same at the
    temperature that was sampled with; ``key_BG`` the perturbed (Gumbel) score that
    ordered the draw (equal to ``logprob_BG`` for a beam). Slots beyond the number of
    items that exist hold item -1 and -inf.
    """

    item_BG: Tensor
    codes_BGL: Tensor
    logprob_BG: Tensor
    logprob_sampling_BG: Tensor
    key_BG: Tensor
