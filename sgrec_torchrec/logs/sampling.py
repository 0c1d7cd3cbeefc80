"""What one training sample is, in which order an epoch takes them, and the teacher.

Letters: U users, W samples (windows of users), C contexts, H newest history items,
S targets, Q draws per target, N items, E edges of the item graph.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.logs.hashing import ORDER, TEACHER, hash64, uniform
from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array

Float64Array = npt.NDArray[np.float64]
CONTEXTS_PER_BLOCK = 1 << 15


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


class GraphRows(NamedTuple):
    """The item graph as the teacher reads it; row i holds what follows item i."""

    indptr_N1: Int64Array
    neighbours_E: Int32Array
    weights_E: Float32Array
    decay: float


class Teacher:
    """Draws items from the item graph's next-item distribution.

    With history h (newest first) the graph scores item j by sum_d decay^d A[h_d, j]
    over the newest ``score_history`` items. A draw from the normalised score picks d
    by decay^d * rowsum(A[h_d]), then j by A[h_d, j]: two binary searches in cumulative
    sums. Memory: 8 bytes an edge beside the graph itself.
    """

    def __init__(
        self, graph: GraphRows, *, score_history: int, num_draws: int, seed: int
    ) -> None:
        self.neighbours_E = graph.neighbours_E
        self.indptr_N1 = np.asarray(graph.indptr_N1, dtype=np.int64)
        self.total_E1 = np.zeros(len(graph.weights_E) + 1)
        np.cumsum(graph.weights_E, dtype=np.float64, out=self.total_E1[1:])
        self.decay_H = float(graph.decay) ** np.arange(score_history)
        self.num_draws = num_draws
        self.seed = seed

    def draw(
        self,
        item_T: Int64Array,
        context_S: Int64Array,
        depth_S: Int64Array,
        noise_key_S: tuple[int, Int64Array, Int64Array],
    ) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Draw for each target.

        Args:
            item_T: items by position; what stands at a begin marker is not read.
            context_S: position of each target's context, never falling.
            depth_S: events of the history up to and with the context.
            noise_key_S: (epoch, sample, position of the target in its sample).

        Returns:
            int64 [S, Q] items, and bool [S]: False where the graph knows nothing of the
            history; the items drawn there mean nothing.
        """
        is_new_S = np.append(True, context_S[1:] != context_S[:-1])
        context_C, depth_C = context_S[is_new_S], depth_S[is_new_S]
        target_starts = np.append(np.flatnonzero(is_new_S), len(context_S))
        item_T = np.maximum(item_T, 0)
        mass_T = self.total_E1[self.indptr_N1[item_T + 1]]
        mass_T -= self.total_E1[self.indptr_N1[item_T]]
        items_SQ = np.zeros((len(context_S), self.num_draws), dtype=np.int64)
        has_mass_S = np.zeros(len(context_S), dtype=np.bool_)
        for first in range(0, len(context_C), CONTEXTS_PER_BLOCK):
            last = min(first + CONTEXTS_PER_BLOCK, len(context_C))
            block = slice(target_starts[first], target_starts[last])
            noise_SQ2 = self._noise(noise_key_S, block)
            place_SQ, has_mass_S[block] = self._pick_place(
                mass_T,
                context_C[first:last],
                depth_C[first:last],
                np.cumsum(is_new_S[block]) - 1,
                noise_SQ2[..., 0],
            )
            source_SQ = item_T.take(place_SQ, mode="clip")
            items_SQ[block] = self._pick_neighbour(source_SQ, noise_SQ2[..., 1])
        return items_SQ, has_mass_S

    def _noise(
        self, noise_key_S: tuple[int, Int64Array, Int64Array], block: slice
    ) -> Float64Array:
        """Two numbers in [0, 1) for each draw of a block of targets."""
        epoch, sample_S, position_S = noise_key_S
        target_S = hash64(self.seed, TEACHER, epoch, sample_S[block], position_S[block])
        draws_Q1 = np.arange(self.num_draws)[:, None]
        return uniform(hash64(target_S[:, None, None], draws_Q1, np.arange(2)))

    def _pick_place(
        self,
        mass_T: Float64Array,
        context_C: Int64Array,
        depth_C: Int64Array,
        row_S: Int64Array,
        noise_SQ: Float64Array,
    ) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """The position of each draw's history item, and where there is any mass."""
        num_back = max(1, min(len(self.decay_H), int(depth_C.max(initial=0))))
        back_H = np.arange(num_back)
        # Places before the history are read but weigh nothing.
        mass_CH = mass_T.take(context_C[:, None] - back_H, mode="wrap")
        mass_CH *= self.decay_H[:num_back]
        mass_CH *= back_H < depth_C[:, None]
        total = np.concatenate([[0.0], np.cumsum(mass_CH)])
        low_S, high_S = total[row_S * num_back], total[(row_S + 1) * num_back]
        cell_SQ = search_cells(total, low_S[:, None], high_S[:, None], noise_SQ)
        return context_C[row_S][:, None] - cell_SQ % num_back, high_S > low_S

    def _pick_neighbour(
        self, source_SQ: Int64Array, noise_SQ: Float64Array
    ) -> Int64Array:
        low_SQ = self.total_E1[self.indptr_N1[source_SQ]]
        high_SQ = self.total_E1[self.indptr_N1[source_SQ + 1]]
        edge_SQ = search_cells(self.total_E1, low_SQ, high_SQ, noise_SQ)
        if not len(self.neighbours_E):
            return np.zeros_like(source_SQ)
        return np.asarray(self.neighbours_E[edge_SQ], dtype=np.int64)


def search_cells(
    total: Float64Array, low: Float64Array, high: Float64Array, noise: Float64Array
) -> Int64Array:
    """Cell c of positive weight with total[c] <= low + noise * (high - low)."""
    wanted = low + noise * (high - low)
    # Rounding must not carry a draw over the end of its own row.
    wanted = np.minimum(wanted, np.nextafter(high, -np.inf))
    cell = np.searchsorted(total, wanted, side="right") - 1
    return np.clip(cell, 0, max(0, len(total) - 2))
