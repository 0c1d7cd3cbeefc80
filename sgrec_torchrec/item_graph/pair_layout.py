"""How a pair of events becomes a word of 64 bits, and what such a word weighs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.config import GraphConfig
from sgrec_torchrec.item_graph import pair_kernels as kernels
from sgrec_torchrec.schema import Int64Array

UNIT = 2.0**-20
"""What an integer of weight counts in."""
WORD_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a pair becomes a word."""

    num_items: int
    num_folds: int
    max_distance: int

    def __post_init__(self) -> None:
        needed = 2 * self.item_bits + self.tag_bits
        if needed > WORD_BITS:
            raise ValueError(
                f"pairs of {self.num_items} items in {self.num_folds} folds up to "
                f"distance {self.max_distance} take {needed} bits, more than "
                f"{WORD_BITS}: lower graph.max_distance or evidence.num_folds"
            )

    @property
    def num_tags(self) -> int:
        """Folds times kinds times distances."""
        return self.num_folds * kernels.NUM_KINDS * self.max_distance

    @property
    def item_bits(self) -> int:
        """Of the source, and of the target."""
        return max(1, (self.num_items - 1).bit_length())

    @property
    def tag_bits(self) -> int:
        """Of the tag."""
        return (self.num_tags - 1).bit_length()

    @property
    def bits(self) -> tuple[int, int]:
        """As the kernels take them."""
        return self.item_bits, self.tag_bits

    def first_words(self, items: Int64Array) -> npt.NDArray[np.uint64]:
        """The smallest word of each source item; ``num_items`` is allowed."""
        return items.astype(np.uint64) << np.uint64(self.item_bits + self.tag_bits)

    def units(self, form: GraphConfig, without: int | None = None) -> Int64Array:
        """What a pair of each tag adds, int64 [tags], in ``UNIT``.

        Args:
            without: the fold that is left out.

        Raises:
            ValueError: where ``form`` reaches farther than was counted, or weighs less
                than a unit.
        """
        if form.max_distance > self.max_distance:
            raise ValueError(
                f"pairs were counted up to distance {self.max_distance}, not "
                f"{form.max_distance}"
            )
        near = np.arange(1, self.max_distance + 1, dtype=np.float64)
        nearness = near**-form.distance_exponent * (near <= form.max_distance)
        forth, back = form.forward_weight, form.backward_weight
        by_kind = np.zeros(kernels.NUM_KINDS)
        by_kind[[kernels.AFTER, kernels.BEFORE]] = forth, back
        by_kind[kernels.BASKET] = (forth + back) / 2.0
        units = np.rint(by_kind[:, None] * nearness / UNIT).astype(np.int64).ravel()
        if by_kind.any() and not units.any():
            raise ValueError(
                f"graph.forward_weight = {forth} and graph.backward_weight = {back}: "
                f"weights under {UNIT:.0e} count as nothing, raise both"
            )
        by_fold = np.tile(units, (self.num_folds, 1))
        if without is not None:
            by_fold[without] = 0
        return by_fold.ravel()
