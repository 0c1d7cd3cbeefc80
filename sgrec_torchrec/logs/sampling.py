"""What one training sample is, in which order an epoch takes them, and the teacher.

Letters: U users, W samples (windows of users), S targets, D draws per target, E taught
events, Q items of one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.hashing import ORDER, TEACHER, hash64, uniform
from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Training samples: sample w shows events [start, end) of a user's train period.

    The events from ``first_target_W`` on are its targets; positions count from the
    user's first event. 28 bytes a sample.
    """

    user_W: Int64Array
    start_W: Int64Array
    end_W: Int64Array
    first_target_W: Int64Array

    def __len__(self) -> int:
        return len(self.user_W)

    def num_targets(self, samples: Int64Array) -> int:
        """How many true targets these samples hold together."""
        return int((self.end_W[samples] - self.first_target_W[samples]).sum())


def cut_windows(lengths_U: npt.NDArray[np.integer], max_history: int) -> Windows:
    """Cut periods of ``lengths_U`` events into samples; every event is a target once.

    A window holds up to max_history events and one more, which is only asked. A longer
    period is cut with stride max_history // 2 (at least 1): then an event is asked in
    the first window that ends after it, behind at least max_history // 2 events.
    Users without events give no sample.
    """
    size, stride = max_history + 1, max(1, max_history // 2)
    lengths_U = lengths_U.astype(np.int64)
    extra_U = -(-np.maximum(lengths_U - size, 0) // stride)
    count_U = np.where(lengths_U > 0, 1 + extra_U, 0)
    user_W = np.repeat(np.arange(len(lengths_U)), count_U)
    nth_W = np.arange(len(user_W)) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    start_W = nth_W * stride
    return Windows(
        user_W=user_W,
        start_W=start_W,
        end_W=np.minimum(start_W + size, lengths_U[user_W]),
        first_target_W=np.where(nth_W > 0, start_W + size - stride, 0),
    )


def epoch_order(num_samples: int, seed: int, epoch: int) -> Int64Array:
    """A permutation of the samples, the same on every rank and for any world size.

    Sorts one hash per sample: 16 bytes and O(log) each, once an epoch.
    """
    return np.argsort(hash64(seed, ORDER, epoch, np.arange(num_samples)), kind="stable")


class SoftTargets(NamedTuple):
    """What else might have come next, for some events of the training period.

    Events are named by their row of ``Sequences``, rising. Item q of event e has
    probability ``cumulative_EQ[e, q] - cumulative_EQ[e, q - 1]``; the last entry of a
    row is 1. Items of no probability may be -1.
    """

    row_E: Int64Array
    item_EQ: Int32Array
    cumulative_EQ: Float32Array

    def validate(self, num_items: int) -> None:
        """Check shapes and ranges once, where soft targets enter the process.

        Raises:
            ValueError: naming what is wrong with them.
        """
        if not len(self.row_E) == len(self.item_EQ) == len(self.cumulative_EQ):
            raise ValueError("soft targets: the arrays are of different lengths")
        if (np.diff(self.row_E) <= 0).any():
            raise ValueError("soft targets: row_E must rise")
        share_EQ = np.diff(self.cumulative_EQ, axis=1, prepend=np.float32(0))
        if (share_EQ < 0).any() or not (self.cumulative_EQ[:, -1:] > 0).all():
            raise ValueError("soft targets: cumulative_EQ must not fall, nor end at 0")
        bad = (self.item_EQ >= num_items) | ((self.item_EQ < 0) & (share_EQ > 0))
        if bad.any():
            event, place = np.argwhere(bad)[0]
            raise ValueError(
                f"the soft targets name item {self.item_EQ[event, place]}, the tokens "
                f"describe {num_items}: build both from one split"
            )


NO_SOFT_TARGETS = SoftTargets(
    row_E=np.zeros(0, dtype=np.int64),
    item_EQ=np.zeros((0, 1), dtype=np.int32),
    cumulative_EQ=np.zeros((0, 1), dtype=np.float32),
)


class Teacher:
    """Draws items from soft targets. Memory: 8 bytes an item of them."""

    def __init__(self, targets: SoftTargets, *, num_draws: int, seed: int) -> None:
        self.targets = targets
        self.num_draws = num_draws
        self.seed = seed

    def draw(
        self, row_S: Int64Array, noise_key_S: tuple[int, Int64Array, Int64Array]
    ) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Draw for each target.

        Args:
            row_S: the target's event.
            noise_key_S: (epoch, sample, position of the target in its sample).

        Returns:
            int64 [S', D] items for those targets that have any, and bool [S]: which
            those are.
        """
        known = self.targets.row_E
        if not len(known):
            empty = np.zeros((0, self.num_draws), dtype=np.int64)
            return empty, np.zeros(len(row_S), dtype=np.bool_)
        place_S = np.minimum(np.searchsorted(known, row_S), len(known) - 1)
        is_taught_S = known[place_S] == row_S
        place = place_S[is_taught_S]
        epoch, sample_S, position_S = noise_key_S
        hashed = hash64(
            self.seed,
            TEACHER,
            epoch,
            sample_S[is_taught_S],
            position_S[is_taught_S],
        )
        noise_SD = uniform(hash64(hashed[:, None], np.arange(self.num_draws)))
        cumulative_SQ = self.targets.cumulative_EQ[place]
        picked_SD = (noise_SD[..., None] >= cumulative_SQ[:, None]).sum(axis=-1)
        items_SQ = self.targets.item_EQ[place]
        # Noise just below 1 must not run over a row that rounds to less than 1, past
        # its last item of any probability.
        last_S1 = (cumulative_SQ < cumulative_SQ[:, -1:]).sum(axis=1, keepdims=True)
        picked_SD = np.minimum(picked_SD, last_S1)
        drawn_SD = np.take_along_axis(items_SQ, picked_SD, axis=1)
        return drawn_SD.astype(np.int64), is_taught_S
