"""Noise as a pure function of keys: the same on any number of ranks, in any order."""

import torch
from torch import Tensor

from sgrec_torchrec.hashing import GOLDEN_GAMMA, signed, splitmix64_


def hash_uniform(key_X: Tensor, salt: int, size: int) -> Tensor:
    """float32 [X, size] in (0, 1): noise for each key (int64 [X]), salt and column.

    The low 23 bits of ``hashing.splitmix64``, offset by half a step so that no value is
    0 or 1 (with 24, the largest would round up to 1 in float32).
    """
    column = torch.arange(size, device=key_X.device) + (salt << 32)
    state = key_X[..., None] + column * signed(GOLDEN_GAMMA)
    # In place: a step of post-training draws millions, and memory is what it waits for.
    state = splitmix64_(state).bitwise_and_(0x7FFFFF)
    return state.float().add_(0.5).mul_(2.0**-23)


def hash_gumbel(key_X: Tensor, salt: int, size: int) -> Tensor:
    """float32 [X, size]: standard Gumbel noise for each key, salt and column."""
    return hash_uniform(key_X, salt, size).log_().neg_().log_().neg_()


def hash_dropout(values_TD: Tensor, key_T: Tensor, salt: int, rate: float) -> Tensor:
    """``values_TD`` with a share ``rate`` of elements zeroed, the rest scaled up."""
    if rate == 0.0:
        return values_TD
    is_kept = hash_uniform(key_T, salt, values_TD.shape[-1]) >= rate
    return values_TD * (is_kept * (1.0 / (1.0 - rate)))
