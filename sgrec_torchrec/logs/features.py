"""Histories -> the ids that the generator looks up, as a KeyedJaggedTensor or plain.

Shared by training, evaluation and serving, so that an event has the same ids wherever
it is seen. Letters: B histories, T positions of all of them end to end, R events.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.schema import (
    Float32Array,
    Int16Array,
    Int32Array,
    Int64Array,
    ItemTokens,
    Sequences,
    feature_names,
)

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EventColumns:
    """Events of any histories end to end, oldest first in each.

    ``events_R`` counts event types from 0, -1 where unknown; ``values_R`` is NaN where
    there is none. Without a clock gaps are unknown, and timestamps only mark baskets.
    """

    items_R: Int32Array
    timestamps_R: Int64Array
    events_R: Int16Array
    values_R: Float32Array
    has_clock: bool
    has_value: bool

    @classmethod
    def of(cls, sequences: Sequences) -> "EventColumns":
        """The events of a prepared log; nothing is copied."""
        return cls(
            items_R=sequences.items_R,
            timestamps_R=sequences.timestamps_R,
            events_R=sequences.events_R,
            values_R=sequences.values_R,
            has_clock=sequences.has_clock,
            has_value=sequences.has_value,
        )


def history_features(
    events: EventColumns,
    first_row_B: Int64Array,
    length_B: Int64Array,
    tokens: ItemTokens,
    config: GeneratorConfig,
) -> "KeyedJaggedTensor":
    """``history_ids`` as the KeyedJaggedTensor that TorchRec's tables take.

    Returns:
        int64 values, int32 lengths, stride B, on the CPU. Ranks do not communicate.
        B must be at least 1: TorchRec's sharded tables fail on a batch of 0.
    """
    # Here, not above: a server looks up the same ids without torchrec.
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    values_KT = history_ids(events, first_row_B, length_B, tokens, config)
    lengths = torch.from_numpy((length_B + 1).astype(np.int32))
    return KeyedJaggedTensor(
        keys=feature_names(tokens.num_levels),
        values=torch.from_numpy(values_KT.reshape(-1)),
        lengths=lengths.repeat(len(values_KT)),
        stride=len(length_B),
    )


def history_ids(
    events: EventColumns,
    first_row_B: Int64Array,
    length_B: Int64Array,
    tokens: ItemTokens,
    config: GeneratorConfig,
) -> Int64Array:
    """Ids of B histories; history b is ``length_B[b]`` rows from its first row.

    Every history gets a begin marker (id 0 of each key) before its events, so T =
    B + the sum of lengths. Ids of an event, keys as in ``schema.feature_names``:

        item     item index + 1
        code_l   l * K + code + 1
        gap      1 + floor(log2(1 + seconds since the event before)), at most the last
                 bucket; 0 for the oldest event of the history, or without a clock
        event    event type + 1; 0 where unknown
        value    1 below 1, else 2 + floor(log2(value)), at most the last bucket; 0
                 where there is none

    Returns:
        int64 [keys, T]. Ranks do not communicate.
    """
    begin_B = np.cumsum(length_B + 1) - (length_B + 1)
    num_positions = int((length_B + 1).sum())
    keys = feature_names(tokens.num_levels)
    values_KT = np.zeros((len(keys), num_positions), dtype=np.int64)
    if len(events.items_R):
        # Row of each position. A begin marker's is another event's: zeroed at the end.
        row_T = np.arange(num_positions)
        row_T += np.repeat(first_row_B - begin_B - 1, length_B + 1)
        _fill(values_KT, events, row_T, tokens, config)
        oldest_B = begin_B[length_B > 0] + 1
        values_KT[keys.index("gap"), oldest_B] = 0
        values_KT[:, begin_B] = 0
    return values_KT


def _fill(
    values_KT: Int64Array,
    events: EventColumns,
    row_T: Int64Array,
    tokens: ItemTokens,
    config: GeneratorConfig,
) -> None:
    num_levels = tokens.num_levels
    item_T = events.items_R[row_T]
    np.add(item_T, 1, out=values_KT[0])
    # take() of short rows is five times as fast as indexing.
    code_TL = tokens.codes_NL.take(item_T, axis=0)
    for level in range(num_levels):
        first_id = level * tokens.num_codes + 1
        np.add(code_TL[:, level], first_id, out=values_KT[level + 1])
    gap_T, event_T, value_T = values_KT[num_levels + 1 :]
    if events.has_clock:
        seconds_T = np.diff(events.timestamps_R[row_T], prepend=0)
        gap_T[:] = gap_bucket(seconds_T, config.num_gap_buckets)
    np.add(events.events_R[row_T], 1, out=event_T)
    if events.has_value:
        value_T[:] = value_bucket(events.values_R[row_T], config.num_value_buckets)


def gap_bucket(seconds: Int64Array, num_buckets: int) -> Int64Array:
    """1 + min(num_buckets - 2, floor(log2(1 + seconds))); below 0 counts as 0 s."""
    # frexp gives the exponent e with 2^(e-1) <= x < 2^e: exact at powers of two.
    exponent = np.frexp(np.maximum(seconds, 0) + 1.0)[1]
    return np.minimum(exponent, num_buckets - 1).astype(np.int64)


def value_bucket(values: Float32Array, num_buckets: int) -> npt.NDArray[np.int64]:
    """Octaves: (-inf, 1) is 1, [1, 2) is 2, [2, 4) is 3, ...; NaN is 0."""
    positive = np.where(values > 0, values, 0.5)
    exponent = np.frexp(positive)[1].astype(np.int64)
    bucket = 1 + np.clip(exponent, 0, num_buckets - 2)
    return np.where(np.isnan(values), 0, bucket)
