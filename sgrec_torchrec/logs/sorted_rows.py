"""Rows sorted by user and time -> the same rows without duplicates, and counts."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

NEEDED_KEYS = ("user_id", "timestamp", "item_id")
KEYS = (*NEEDED_KEYS, "event")
MORE_KEYS = ("value", "split")
_ROW_BITS = 40
"""A key holds a user's number inside the batch above 40 bits of file row (1e12)."""


class SortedRows:
    """Counts over batches sorted by ``keys``, those that there are, and ``file_row``.

    ``num_out_of_order`` counts the rows that stood in the file above an earlier event
    of their user. ``num_duplicates`` counts the rows whose keys equal those of a row
    above. Memory: one batch.

    Args:
        value_counts: False: value and split are no keys.
    """

    def __init__(self, *, drop_duplicates: bool, value_counts: bool = True) -> None:
        self.drop_duplicates = drop_duplicates
        self.keys = (*KEYS, *(MORE_KEYS if value_counts else ()))
        self.times = (np.iinfo(np.int64).max, np.iinfo(np.int64).min)
        """The first and the last timestamp."""
        self.num_out_of_order = 0
        self.num_duplicates = 0
        self.num_users = 0
        self.num_kept = 0
        self._last: pa.RecordBatch | None = None
        self._max_row = -1
        self._max_row_before_basket = -1

    def stream(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the batches without ``file_row`` (and duplicates, where dropped)."""
        for batch in batches:
            if batch.num_rows == 0:
                continue
            is_duplicate = self._count(batch)
            self._last = batch.slice(batch.num_rows - 1)
            kept = batch.drop_columns(["file_row"])
            if self.drop_duplicates and is_duplicate.any():
                kept = kept.filter(pa.array(~is_duplicate))
            self.num_kept += kept.num_rows
            if kept.num_rows:
                yield kept

    def _count(self, batch: pa.RecordBatch) -> BoolArray:
        """Add up the batch; which of its rows are duplicates."""
        is_first = self._last is None
        joined = batch if self._last is None else _concat(self._last, batch)
        same_user = _same_as_above(joined, "user_id")
        same_basket = same_user & _same_as_above(joined, "timestamp")
        is_duplicate = same_basket & _same_as_above(joined, "item_id")
        for key in self.keys[len(NEEDED_KEYS) :]:
            if key in batch.schema.names:
                is_duplicate &= _same_as_above(joined, key)
        time = batch.column("timestamp").to_numpy()
        first, last = self.times
        self.times = (min(first, int(time.min())), max(last, int(time.max())))
        carried = 0 if is_first else 1
        self.num_duplicates += int(is_duplicate.sum())
        self.num_users += int((~same_user).sum()) - carried
        is_late = self._is_out_of_order(joined, same_user, same_basket)
        self.num_out_of_order += int(is_late[carried:].sum())
        return is_duplicate[carried:]

    def _is_out_of_order(
        self, joined: pa.RecordBatch, same_user: BoolArray, same_basket: BoolArray
    ) -> BoolArray:
        """Per row: does an earlier event of the same user have a greater file row?"""
        row = joined.column("file_row").to_numpy().astype(np.int64)
        user = np.cumsum(~same_user, dtype=np.int64)
        key = (user << _ROW_BITS) | row
        if self._last is not None:
            key[0] = (user[0] << _ROW_BITS) | max(self._max_row, int(row[0]))
        running = np.maximum.accumulate(key)
        position = np.arange(len(row))
        basket_start = np.maximum.accumulate(np.where(same_basket, 0, position))
        before = np.where(basket_start > 0, running[basket_start - 1], -1)
        if self._max_row_before_basket >= 0:
            carried = (user[0] << _ROW_BITS) | self._max_row_before_basket
            before[basket_start == 0] = carried
        own = (user << _ROW_BITS) | row
        mask = (1 << _ROW_BITS) - 1
        self._max_row = int(running[-1]) & mask
        is_same_user = before[-1] >> _ROW_BITS == user[-1]
        self._max_row_before_basket = int(before[-1]) & mask if is_same_user else -1
        return np.asarray(before > own)


def _concat(last: pa.RecordBatch, batch: pa.RecordBatch) -> pa.RecordBatch:
    (joined,) = pa.Table.from_batches([last, batch]).combine_chunks().to_batches()
    return joined


def _same_as_above(batch: pa.RecordBatch, name: str) -> BoolArray:
    """Per row: is the column equal to the row above (False for the first row)?"""
    column = batch.column(name)
    same = np.zeros(batch.num_rows, dtype=np.bool_)
    if batch.num_rows > 1:
        above, below = column.slice(0, batch.num_rows - 1), column.slice(1)
        equal = pc.equal(below, above).fill_null(False)
        # Two that are not there are alike.
        is_null = column.is_null().to_numpy(zero_copy_only=False)
        both_null = is_null[1:] & is_null[:-1]
        same[1:] = equal.to_numpy(zero_copy_only=False) | both_null
    return same
