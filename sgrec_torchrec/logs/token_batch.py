"""What one rank trains on in one step, in the form that TorchRec's pipelines move.

Letters: B sequences, T positions, S targets, L code levels, K codes per level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from sgrec_torchrec.schema import StepOutput


@dataclass(slots=True, kw_only=True)
class TokenBatch(Pipelineable):  # type: ignore[misc]
    """One rank's share of a global batch, ready for the device.

    ``features`` has keys ``feature_names(L)``, all with the same lengths [B]: position
    0 of every sequence is the begin marker (id 0 of every table), then one position per
    event, so a sequence of n events has n + 1 positions:

        key      seq 0        seq 1 (no events yet)
        item     [0, 7, 3]    [0]            item index + 1
        code_0   [0, 5, 9]    [0]            level * K + code + 1
        gap      [0, 0, 4]    [0]            bucket of seconds since the last event + 1
        ...

    Target s asks position ``target_context_S[s]`` (an index into the T positions, the
    last one before the target's basket) for item ``target_item_S[s]``.
    """

    features: KeyedJaggedTensor
    position_key_T: Tensor
    """int64: hash of (sample id, step, position): the seed of any noise on it."""
    target_context_S: Tensor
    """int64 index into positions."""
    target_item_S: Tensor
    """int64 item index in [0, N)."""
    target_weight_S: Tensor
    """float32: 1 for a true target, the teacher's share for a sampled one."""
    loss_scale: Tensor
    """float32 scalar: world size / total target weight of the *global* batch, so that
    the mean over ranks of ``loss_scale * sum`` is the global mean."""
    trains_tables: bool = True
    asks_ends: bool = False

    def output(self, logprob_SL: Tensor, num_positions: int) -> StepOutput:
        """Weighted next-item cross-entropy over the levels.

        loss = -loss_scale * sum_s weight_s sum_l logprob_sl
        """
        level_loss_L = -self.loss_scale * (self.target_weight_S @ logprob_SL)
        positions = level_loss_L.new_tensor(num_positions)
        return StepOutput(level_loss_L.sum(), level_loss_L.detach(), positions)

    def to(self, device: torch.device, non_blocking: bool = False) -> "TokenBatch":
        """A copy on ``device``."""
        return TokenBatch(
            features=self.features.to(device, non_blocking),
            position_key_T=self.position_key_T.to(device, non_blocking=non_blocking),
            target_context_S=self.target_context_S.to(
                device, non_blocking=non_blocking
            ),
            target_item_S=self.target_item_S.to(device, non_blocking=non_blocking),
            target_weight_S=self.target_weight_S.to(device, non_blocking=non_blocking),
            loss_scale=self.loss_scale.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that ``stream`` uses these tensors."""
        self.features.record_stream(stream)
        for tensor in (
            self.position_key_T,
            self.target_context_S,
            self.target_item_S,
            self.target_weight_S,
            self.loss_scale,
        ):
            tensor.record_stream(stream)

    def pin_memory(self) -> "TokenBatch":
        """A copy in page-locked memory."""
        return TokenBatch(
            features=self.features.pin_memory(),
            position_key_T=self.position_key_T.pin_memory(),
            target_context_S=self.target_context_S.pin_memory(),
            target_item_S=self.target_item_S.pin_memory(),
            target_weight_S=self.target_weight_S.pin_memory(),
            loss_scale=self.loss_scale.pin_memory(),
        )
