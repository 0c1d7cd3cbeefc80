"""At most so many items of a list share their first codes: diversity inside the beam.

Items whose first codes agree are alike by construction, so a bound on them spreads a
list over the catalogue. The bound is met by the choice of beams, not by dropping items
from a longer list.

Letters: B users, W beams, P places (beam, code), K codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCap:
    """At most ``count_B`` items of a user share their first ``length_B`` codes."""

    length_B: Tensor
    """int64 in [1, L]; beyond L there is no bound."""
    count_B: Tensor
    """int64 >= 1."""


class CapWalk:
    """Which beams share a bounded prefix, level by level."""

    def __init__(self, cap: PrefixCap, num_levels: int) -> None:
        self.cap, self.num_levels = cap, num_levels
        self.group_BW = torch.zeros_like(cap.length_B)[:, None]

    def choose(
        self, level: int, total_BWK: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """The ``count`` next beams of each user: float keys and int64 places, sorted.

        At the last level only places within the bound are left. Before it, each
        bounded prefix first gets as many beams as it may have items and what room is
        left goes to the best of the rest; so a prefix of much probability does not
        crowd out the others, and a beam that holds every prefix stays exact.
        """
        num_users, width, num_codes = total_BWK.shape
        if level > 0:
            # Until a prefix is complete every beam is a group of its own.
            own_BW = torch.arange(width, device=total_BWK.device).expand(num_users, -1)
            is_open_B1 = (level <= self.cap.length_B)[:, None]
            self.group_BW = torch.where(is_open_B1, own_BW, self.group_BW)
        key_BP, place_BP = total_BWK.flatten(1).sort(descending=True, stable=True)
        is_bound_B1 = (level >= self.cap.length_B)[:, None]
        group_BP = self.group_BW.gather(1, place_BP // num_codes)
        is_within_BP = _nth_of_group(group_BP) < self.cap.count_B[:, None]
        is_within_BP |= ~is_bound_B1
        if level == self.num_levels - 1:
            key_BP = key_BP.masked_fill(~is_within_BP, NEVER)
        order_BP = (~is_within_BP).to(torch.uint8).sort(dim=1, stable=True).indices
        chosen_BW = order_BP[:, :count]
        key_BW, place_BW = key_BP.gather(1, chosen_BW), place_BP.gather(1, chosen_BW)
        # Living places beyond the bound may stand before dead ones within it.
        key_BW, order_BW = key_BW.sort(descending=True, stable=True)
        place_BW = place_BW.gather(1, order_BW)
        self.group_BW = self.group_BW.gather(1, place_BW // num_codes)
        return key_BW, place_BW


def _nth_of_group(group_BP: Tensor) -> Tensor:
    """int64 [B, P]: how many places of the same group stand before each one."""
    sorted_BP, order_BP = group_BP.sort(dim=1, stable=True)
    place_BP = torch.arange(group_BP.shape[1], device=group_BP.device)
    is_first_BP = torch.ones_like(sorted_BP, dtype=torch.bool)
    is_first_BP[:, 1:] = sorted_BP[:, 1:] != sorted_BP[:, :-1]
    first_BP = (place_BP * is_first_BP).cummax(dim=1).values
    return torch.zeros_like(group_BP).scatter_(1, order_BP, place_BP - first_BP)
