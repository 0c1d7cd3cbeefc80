"""Prepared split -> batches for one rank, the same in union for any number of ranks.

Letters: U users, W samples, B sequences of a batch, T positions, F events shown in a
batch's windows, S targets, L code levels, K codes per level.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.config import GeneratorConfig, RunConfig
from sgrec_torchrec.hashing import POSITION, hash64
from sgrec_torchrec.logs.features import EventColumns, history_features
from sgrec_torchrec.logs.sampling import SoftTargets, Teacher, cut_windows, epoch_order
from sgrec_torchrec.logs.token_batch import TokenBatch
from sgrec_torchrec.schema import (
    EvalRows,
    Int32Array,
    Int64Array,
    ItemTokens,
    Sequences,
    SplitLog,
)

Number = TypeVar("Number", int, float)


class TrainStream:
    """One rank's share of every global batch of every epoch.

    A sample is a window of one user's training period (``sampling.cut_windows``). The
    order of an epoch is a hash of (seed, epoch, sample); global batch k is the next
    ``pretrain.global_batch_size`` samples of it, and rank r takes every world_size-th
    from the r-th on. So a batch is a pure function of (seed, epoch, step, rank, world
    size): nothing is communicated, and ``first_step`` resumes anywhere. The last batch
    may be short; a rank without a sample gets a begin marker with a target of weight
    0, since sharded tables fail on an empty batch.

    Memory: the split itself, 32 bytes a sample and the soft targets, on each rank.

    Raises:
        ValueError: for codes of another catalogue, an unresolved teacher weight, a
            rank outside the world, or a training period without an event.
    """

    def __init__(
        self,
        split: SplitLog,
        codes_NL: Int32Array,
        num_codes: int,
        config: RunConfig,
        soft_targets: SoftTargets | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        sequences = split.sequences
        check_stream(sequences, codes_NL, rank, world_size)
        self.config, self.rank, self.world_size = config, rank, world_size
        self.batch_size = resolved(
            "pretrain.global_batch_size", config.pretrain.global_batch_size
        )
        self.offsets_U1 = sequences.offsets_U1
        self.events = EventColumns.of(sequences)
        self.tokens = ItemTokens(codes_NL=codes_NL, num_codes=num_codes)
        is_refit = config.log.fit_on == "train+valid"
        end_U = sequences.valid_end_U if is_refit else sequences.train_end_U
        self.windows = cut_windows(end_U, config.log.max_history)
        if not len(self.windows):
            raise ValueError("the training period holds no event: import more rows")
        self.teacher_weight = 0.0
        self.teacher: Teacher | None = None
        if soft_targets is not None:
            self._use_teacher(soft_targets)

    def _use_teacher(self, soft_targets: SoftTargets) -> None:
        pretrain = self.config.pretrain
        weight = resolved("pretrain.teacher_weight", pretrain.teacher_weight)
        num_draws = resolved("pretrain.teacher_samples", pretrain.teacher_samples)
        soft_targets.validate(self.tokens.num_items)
        if weight > 0 and num_draws > 0:
            self.teacher_weight = weight
            self.teacher = Teacher(
                soft_targets, num_draws=num_draws, seed=self.config.seed
            )

    @property
    def num_samples(self) -> int:
        """Samples an epoch over all ranks."""
        return len(self.windows)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch: the same on every rank and for any world size."""
        return -(-self.num_samples // self.batch_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TokenBatch]:
        """This rank's batches of an epoch, from ``first_step`` on. No communication."""
        order_W = epoch_order(self.num_samples, self.config.seed, epoch)
        size = self.batch_size
        for step in range(first_step, self.steps_per_epoch):
            global_batch = order_W[step * size : (step + 1) * size]
            mine_B = global_batch[self.rank :: self.world_size]
            scale = self.world_size / self.windows.num_targets(global_batch)
            yield self._batch(mine_B, epoch, scale)

    def _batch(self, sample_B: Int64Array, epoch: int, scale: float) -> TokenBatch:
        """Samples -> TokenBatch. ``scale`` is world size / targets of all ranks.

        The weights of one true target and its draws add up to 1, so the total weight
        of the global batch is its number of true targets.
        """
        if not len(sample_B):
            return self._idle_batch(scale)
        windows = self.windows
        start_B = windows.start_W[sample_B]
        row_B = self.offsets_U1[windows.user_W[sample_B]] + start_B
        size_B = windows.end_W[sample_B] - start_B
        sample_F, local_F = _ragged(size_B)
        row_F = row_B[sample_F] + local_F
        basket_F = _basket_starts(self.events.timestamps_R[row_F], local_F)
        # Events after the last basket's start are asked but never a context: not shown.
        length_B = basket_F[np.cumsum(size_B) - 1]
        begin_B = np.cumsum(length_B + 1) - (length_B + 1)
        first_B = windows.first_target_W[sample_B] - start_B
        asked_F = np.flatnonzero(local_F >= first_B[sample_F])
        sequence_S, depth_S = sample_F[asked_F], basket_F[asked_F]
        context_S = begin_B[sequence_S] + depth_S
        features = history_features(
            self.events, row_B, length_B, self.tokens, self.config.generator
        )
        context_S, target_S, weight_S = self._with_teacher(
            context_S,
            row_F[asked_F],
            (epoch, sample_B[sequence_S], local_F[asked_F]),
        )
        sequence_T, position_T = _ragged(length_B + 1)
        key_T = hash64(
            self.config.seed, POSITION, epoch, sample_B[sequence_T], position_T
        )
        return _token_batch(
            features=features,
            key_T=key_T.view(np.int64),
            context_S=context_S,
            target_S=target_S,
            weight_S=weight_S,
            scale=scale,
        )

    def _with_teacher(
        self,
        context_S: Int64Array,
        row_S: Int64Array,
        noise_key_S: tuple[int, Int64Array, Int64Array],
    ) -> tuple[Int64Array, Int64Array, npt.NDArray[np.float32]]:
        """Contexts, items and weights of the true targets, then of the draws."""
        target_S = self.events.items_R[row_S].astype(np.int64)
        weight_S = np.ones(len(target_S), dtype=np.float32)
        if self.teacher is None:
            return context_S, target_S, weight_S
        drawn_SD, is_taught_S = self.teacher.draw(row_S, noise_key_S)
        num_draws = drawn_SD.shape[1]
        weight_S[is_taught_S] = 1.0 - self.teacher_weight
        share = np.full(drawn_SD.size, self.teacher_weight / num_draws, np.float32)
        drawn_context = np.repeat(context_S[is_taught_S], num_draws)
        return (
            np.concatenate([context_S, drawn_context]),
            np.concatenate([target_S, drawn_SD.reshape(-1)]),
            np.concatenate([weight_S, share]),
        )

    def _idle_batch(self, scale: float) -> TokenBatch:
        zero = np.zeros(1, dtype=np.int64)
        features = history_features(
            self.events, zero, zero, self.tokens, self.config.generator
        )
        return _token_batch(
            features, zero, zero, zero, np.zeros(1, dtype=np.float32), scale
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalBatch:
    """Evaluation rows of one rank; all tensors int64.

    ``row_B`` counts in the ``EvalRows`` that were asked for, -1 marks padding (without
    history, target 0). ``seen_items_P[seen_offsets_B1[b] : seen_offsets_B1[b + 1]]``
    are all items that the user had before the target, also those older than the
    history that is shown.
    """

    features: KeyedJaggedTensor
    row_B: Tensor
    target_B: Tensor
    seen_items_P: Tensor
    seen_offsets_B1: Tensor

    def seen_item_BH(self) -> Tensor:
        """int64 [B, H]: the seen items of each row, padded with -1."""
        length_B = self.seen_offsets_B1.diff()
        width = int(length_B.max()) if len(length_B) else 0
        place_H = torch.arange(width, device=length_B.device)
        is_real_BH = place_H < length_B[:, None]
        padded_BH = torch.full_like(is_real_BH, -1, dtype=torch.int64)
        padded_BH[is_real_BH] = self.seen_items_P
        return padded_BH

    def to(self, device: torch.device) -> "EvalBatch":
        """A copy on ``device``."""
        return EvalBatch(
            features=self.features.to(device),
            row_B=self.row_B.to(device),
            target_B=self.target_B.to(device),
            seen_items_P=self.seen_items_P.to(device),
            seen_offsets_B1=self.seen_offsets_B1.to(device),
        )


def eval_batches(
    sequences: Sequences,
    rows: EvalRows,
    codes_NL: Int32Array,
    num_codes: int,
    config: GeneratorConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[EvalBatch]:
    """Rank r's share of ``rows``: every world_size-th from the r-th on, in order.

    All ranks yield the same number of batches of the same sizes, the last ones padded
    with rows -1, so that collectives inside the model stay in step. Nothing is
    communicated here.

    Raises:
        ValueError: for codes of another catalogue or a rank outside the world.
    """
    check_stream(sequences, codes_NL, rank, world_size)
    tokens = ItemTokens(codes_NL=codes_NL, num_codes=num_codes)
    events = EventColumns.of(sequences)
    share = -(-len(rows) // world_size)
    mine = np.arange(rank, share * world_size, world_size)
    mine[mine >= len(rows)] = -1
    for first in range(0, share, batch_size):
        row_B = mine[first : first + batch_size]
        yield eval_batch(sequences, events, rows, row_B, tokens, config)


def eval_batch(
    sequences: Sequences,
    events: EventColumns,
    rows: EvalRows,
    row_B: Int64Array,
    tokens: ItemTokens,
    config: GeneratorConfig,
) -> EvalBatch:
    """The chosen rows as one batch; -1 stands for padding, at least one row."""
    is_real_B = row_B >= 0
    asked = rows.take(np.where(is_real_B, row_B, 0))
    start_B = asked.history_start_E.astype(np.int64)
    end_B = np.where(is_real_B, asked.history_end_E, 0).astype(np.int64)
    user_row_B = sequences.offsets_U1[asked.user_E]
    features = history_features(
        events,
        user_row_B + start_B,
        np.where(is_real_B, end_B - start_B, 0),
        tokens,
        config,
    )
    sequence_P, local_P = _ragged(end_B)
    seen_P = sequences.items_R[user_row_B[sequence_P] + local_P]
    return EvalBatch(
        features=features,
        row_B=torch.from_numpy(row_B),
        target_B=torch.from_numpy(np.where(is_real_B, asked.target_E, 0)).long(),
        seen_items_P=torch.from_numpy(seen_P).long(),
        seen_offsets_B1=torch.from_numpy(np.append(0, np.cumsum(end_B))),
    )


def resolved(name: str, value: Number | None) -> Number:
    """``value``, or a ValueError where the log's measures have not filled it yet."""
    if value is None:
        raise ValueError(
            f"{name} is None: pass the settings through logs.measure.resolve first"
        )
    return value


def check_stream(
    sequences: Sequences, codes_NL: Int32Array, rank: int, world_size: int
) -> None:
    """Raise ValueError unless codes fit the catalogue and the rank fits the world."""
    if len(codes_NL) != sequences.num_items:
        raise ValueError(
            f"the tokens describe {len(codes_NL)} items, the split has "
            f"{sequences.num_items}: build the tokens from this split"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside [0, {world_size})")


def _ragged(size_B: Int64Array) -> tuple[Int64Array, Int64Array]:
    """For groups end to end: the group of each member, and its place in the group."""
    group = np.repeat(np.arange(len(size_B)), size_B)
    first_B = np.cumsum(size_B) - size_B
    return group, np.arange(len(group)) - first_B[group]


def _basket_starts(timestamps_F: Int64Array, local_F: Int64Array) -> Int64Array:
    """The place in its window of the first event of each event's basket."""
    is_first_F = np.append(True, timestamps_F[1:] != timestamps_F[:-1])
    is_first_F |= local_F == 0
    index_F = np.arange(len(local_F))
    first_F = np.maximum.accumulate(np.where(is_first_F, index_F, 0))
    return local_F[first_F]


def _token_batch(
    features: KeyedJaggedTensor,
    key_T: Int64Array,
    context_S: Int64Array,
    target_S: Int64Array,
    weight_S: npt.NDArray[np.float32],
    scale: float,
) -> TokenBatch:
    return TokenBatch(
        features=features,
        position_key_T=torch.from_numpy(key_T),
        target_context_S=torch.from_numpy(context_S),
        target_item_S=torch.from_numpy(target_S),
        target_weight_S=torch.from_numpy(weight_S),
        loss_scale=torch.tensor(scale, dtype=torch.float32),
    )
