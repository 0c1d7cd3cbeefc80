"""A reward table as tensors of one device: the same answers without leaving it.

Letters: N pairs asked for, A aspects, U users, M items and P pairs of a segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sgrec_torchrec.reward_table.ids import Texts
from sgrec_torchrec.reward_table.lookup import MAX_CODE
from sgrec_torchrec.reward_table.manifest import Manifest
from sgrec_torchrec.reward_table.segment import MEND, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceSegment:
    """Ids sorted for ``searchsorted``, with the row or index that each stands for."""

    user_ids_U: Tensor
    row_U: Tensor
    item_ids_M: Tensor
    offsets_U1: Tensor
    """Into pairs: the padding of the files is left out."""
    items_P: Tensor
    """int32: place among the item ids, which is below 2^31."""
    rewards_P: Tensor
    """int16, the bits of uint16."""
    aspects_PA: Tensor | None
    prefixes_U2: Tensor | None
    is_replacing_U: Tensor | None
    num_steps: int
    """Halvings until the longest row is one pair."""


class DeviceTable:
    """Answers int64 tensors of its device; see ``RewardTable`` for what they mean.

    Memory of the device: 6 bytes a pair (and 2 for each aspect), 24 to 41 a user, 8 an
    item; of the host, while it is copied, 40 bytes a pair. No value is read back to the
    host, so lookups do not synchronise.
    """

    def __init__(
        self,
        manifest: Manifest,
        newest_first: Sequence[Segment],
        device: torch.device,
    ) -> None:
        if manifest.columns.user_is_text or manifest.columns.item_is_text:
            raise ValueError(
                "ids are strings, which no device holds: look them up on the CPU, or "
                "build the table with integer ids"
            )
        self._manifest = manifest
        self.device = device
        self._newest_first = [_copy(segment, device) for segment in newest_first]

    def lookup(
        self, user_ids: Tensor, item_ids: Tensor, *, aspects: bool = False
    ) -> tuple[Tensor, ...]:
        """Rewards of N pairs.

        Args:
            user_ids: int64 [N] on the table's device.
            item_ids: int64 [N], likewise.
            aspects: also read the aspect scores.

        Returns:
            rewards float32 [N], NaN where missing; found bool [N]; with ``aspects``
            also float32 [N, A], NaN where missing. Neither carries gradients.

        Raises:
            ValueError: for tensors of another type, shape or device, or aspects that
                the table has not.
        """
        self._check(user_ids, "user_ids")
        self._check(item_ids, "item_ids")
        if len(user_ids) != len(item_ids):
            raise ValueError(
                f"{len(user_ids)} user_ids, {len(item_ids)} item_ids: give one item a "
                "user"
            )
        num_aspects = len(self._manifest.columns.aspects)
        if aspects and not num_aspects:
            raise ValueError("the table has no aspects: build it with columns aspect_*")
        rewards_N = torch.full((len(user_ids),), torch.nan, device=self.device)
        found_N = torch.zeros_like(user_ids, dtype=torch.bool)
        is_open_N = torch.ones_like(found_N)
        scores_NA = rewards_N[:, None].repeat(1, num_aspects)
        for segment in self._newest_first:
            user_N, has_row_N = _find(segment.user_ids_U, user_ids)
            rows_N = segment.row_U[user_N]
            wanted_N, has_index_N = _find(segment.item_ids_M, item_ids)
            places_N = _search(segment, rows_N, wanted_N)
            is_hit_N = is_open_N & has_row_N & has_index_N
            is_hit_N &= segment.items_P[places_N] == wanted_N
            values_N = _decode(segment.rewards_P[places_N], self._manifest.reward_range)
            rewards_N = torch.where(is_hit_N, values_N, rewards_N)
            if aspects:
                assert segment.aspects_PA is not None
                values_NA = _decode(
                    segment.aspects_PA[places_N], self._manifest.aspect_range
                )
                scores_NA = torch.where(is_hit_N[:, None], values_NA, scores_NA)
            found_N |= is_hit_N
            is_open_N &= ~is_hit_N
            if segment.is_replacing_U is not None:
                is_open_N &= ~(has_row_N & segment.is_replacing_U[rows_N])
        return (rewards_N, found_N, scores_NA) if aspects else (rewards_N, found_N)

    def as_of(self, user_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position int64 [N] (-1: missing), history hash bits int64 [N], found [N].

        Raises:
            ValueError: for a table without as_of, or another kind of tensor.
        """
        self._check(user_ids, "user_ids")
        if not self._manifest.columns.has_as_of:
            raise ValueError("the table has no as_of: build it with that column")
        found_N = torch.zeros_like(user_ids, dtype=torch.bool)
        prefix_N2 = torch.stack([found_N.long() - 1, found_N.long()], dim=1)
        for segment in self._newest_first:
            assert segment.prefixes_U2 is not None
            user_N, is_here_N = _find(segment.user_ids_U, user_ids)
            is_here_N &= ~found_N
            prefixes_N2 = segment.prefixes_U2[segment.row_U[user_N]]
            prefix_N2 = torch.where(is_here_N[:, None], prefixes_N2, prefix_N2)
            found_N |= is_here_N
        return prefix_N2[:, 0], prefix_N2[:, 1], found_N

    def _check(self, ids: Tensor, name: str) -> None:
        is_here = isinstance(ids, Tensor) and ids.device.type == self.device.type
        if not is_here or ids.dtype != torch.int64 or ids.ndim != 1:
            raise ValueError(f"{name}: give an int64 tensor [N] on {self.device}")


def _copy(segment: Segment, device: torch.device) -> _DeviceSegment:
    users, items = segment.user_ids(), segment.item_ids
    assert not isinstance(users, Texts)
    assert not isinstance(items, Texts)

    def moved(array: npt.NDArray[Any]) -> Tensor:
        # torch warns of read-only memory: a copy is due on the CPU anyway
        return torch.from_numpy(array.copy()).to(device)

    prefixes = None
    if segment.as_of is not None:
        seen = np.zeros(len(users), np.int64)
        if segment.history_hash is not None:
            seen = segment.history_hash.view(np.int64)
        prefixes = moved(np.stack([segment.as_of, seen], axis=1))
    pairs = segment.pairs(0, len(users))
    lengths_U = np.bincount(pairs.row_P, minlength=len(users))
    if not lengths_U.all():
        raise ValueError(
            f"segment {segment.facts.name} is damaged (a user has no pairs): {MEND}"
        )
    order_U = np.argsort(users)
    replacing, aspects = segment.is_replacing, pairs.aspects_PA
    return _DeviceSegment(
        user_ids_U=moved(users[order_U]),
        row_U=moved(order_U),
        item_ids_M=moved(items),
        offsets_U1=moved(np.append(0, np.cumsum(lengths_U))),
        items_P=moved(pairs.item_P.astype(np.int32)),
        rewards_P=moved(pairs.reward_P.view(np.int16)),
        aspects_PA=None if aspects is None else moved(aspects.view(np.int16)),
        prefixes_U2=prefixes,
        is_replacing_U=None if replacing is None else moved(replacing > 0),
        num_steps=int(segment.facts.pairs_per_user[1] - 1).bit_length(),
    )


def _find(sorted_ids: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Place of each id (any place where it is not there), and whether it is."""
    place_N = torch.searchsorted(sorted_ids, ids_N).clamp_(max=len(sorted_ids) - 1)
    return place_N, sorted_ids[place_N] == ids_N


def _search(segment: _DeviceSegment, rows_N: Tensor, wanted_N: Tensor) -> Tensor:
    """The last place of each row whose item is not above the wanted one. int64 [N]."""
    first_N = segment.offsets_U1[rows_N]
    length_N = segment.offsets_U1[rows_N + 1] - first_N
    for _ in range(segment.num_steps):
        half_N = length_N // 2
        goes_up_N = segment.items_P[first_N + half_N] <= wanted_N
        first_N = first_N + half_N * goes_up_N
        length_N = length_N - half_N
    return first_N


def _decode(bits: Tensor, low_high: tuple[float, float]) -> Tensor:
    """Fixed point -> float32, by the arithmetic of the CPU's kernel."""
    low, high = low_high
    t = (bits.long() & MAX_CODE).double() / MAX_CODE
    return (low * (1.0 - t) + high * t).float()
