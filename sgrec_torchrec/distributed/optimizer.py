"""The optimizer of a sharded model: fused tables and clipped AdamW for the rest.

Turns a ``DistributedModelParallel`` into one keyed optimizer that a checkpoint and a
train pipeline understand.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import (
    CombinedOptimizer,
    KeyedOptimizer,
    KeyedOptimizerWrapper,
    OptimizerWrapper,
)
from torchrec.optim.optimizers import in_backward_optimizer_filter

DENSE = "dense"


class ClippedOptimizer(OptimizerWrapper):  # type: ignore[misc]
    """Scales gradients to a total L2 norm of at most ``max_gradient_norm``, then steps.

    Dense gradients are equal on all ranks after DDP, so no communication is needed.
    ``gradient_norm`` is the norm before clipping, a scalar on the device.
    """

    def __init__(self, optimizer: KeyedOptimizer, max_gradient_norm: float) -> None:
        super().__init__(optimizer)
        self.max_gradient_norm = max_gradient_norm
        self.gradient_norm: Tensor | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Clip, note the norm, update."""
        self.gradient_norm = nn.utils.clip_grad_norm_(
            list(self.params.values()), self.max_gradient_norm
        )
        super().step(closure)


def build_optimizer(
    dmp: DistributedModelParallel,
    *,
    dense_lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    max_gradient_norm: float = math.inf,
) -> CombinedOptimizer:
    """Combine the tables' fused optimizer with clipped AdamW for all other parameters.

    Biases, norms and other parameters with fewer than two dimensions do not decay.
    The tables update inside ``backward``: clipping and ``zero_grad`` do not reach
    them, and each ``backward`` is one update. AdamW's state is made here, with zeros,
    so that a checkpoint can be read into it.

    Raises:
        ValueError: where a setting is out of range.
    """
    if not max_gradient_norm > 0:
        raise ValueError(f"max_gradient_norm = {max_gradient_norm} must be positive")
    params = dict(in_backward_optimizer_filter(dmp.named_parameters()))

    def make_adamw(tensors: list[Tensor]) -> torch.optim.Optimizer:
        groups = [
            {
                "params": [one for one in tensors if one.dim() >= 2],
                "weight_decay": weight_decay,
            },
            {
                "params": [one for one in tensors if one.dim() < 2],
                "weight_decay": 0.0,
            },
        ]
        return torch.optim.AdamW(groups, lr=dense_lr, betas=betas, fused=True)

    dense = KeyedOptimizerWrapper(params, make_adamw)
    _make_state(dense)
    clipped = ClippedOptimizer(dense, max_gradient_norm)
    return CombinedOptimizer([dmp.fused_optimizer, (DENSE, clipped)])


def set_learning_rates(
    optimizer: CombinedOptimizer, dense_lr: float, table_lr: float
) -> None:
    """Set both learning rates for the coming step. Call it before ``backward``.

    A fused optimizer keeps its rate inside the lookup kernel, where only its ``step``
    puts it (it moves no weight), and ``backward`` reads it there: hence the call here.
    """
    for key, part in optimizer.optimizers:
        for group in part.param_groups:
            group["lr"] = dense_lr if key == DENSE else table_lr
        if key != DENSE:
            part.step()


def gradient_norm(optimizer: CombinedOptimizer) -> float:
    """L2 norm of the dense gradients at the last step, before clipping.

    Waits for the device; NaN before the first step. No communication.
    """
    clipped = dict(optimizer.optimizers)[DENSE]
    return math.nan if clipped.gradient_norm is None else float(clipped.gradient_norm)


def _make_state(dense: KeyedOptimizerWrapper) -> None:
    # AdamW makes its state in the first step. With lr 0 that step moves no weight and
    # with zero gradients it leaves zero moments; only its counter must go back.
    rates = [group["lr"] for group in dense.param_groups]
    for group in dense.param_groups:
        group["lr"] = 0.0
    dense.init_state()
    for group, rate in zip(dense.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in dense.state.values():
        state["step"].zero_()
    dense.zero_grad()
