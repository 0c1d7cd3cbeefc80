"""Pairs that a trainer asked for and the table did not hold -> candidates to judge."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from sgrec_torchrec.files.atomic import atomic_file

FOLD_AT_ROWS = 1 << 16
COLUMNS = ["user_id", "item_id", "count"]
NUMBERS_KEY = b"asked, missing, dropped"


class MissLog:
    """Counts missing pairs; keeps at most ``max_pairs`` distinct ones.

    Beyond that the pairs asked for least often go first, the later ones of equals.
    Memory: some 100 bytes a pair. One log a process: each rank writes its own file.
    """

    def __init__(self, max_pairs: int = 1_000_000) -> None:
        if max_pairs < 1:
            raise ValueError(f"max_pairs {max_pairs}: give at least 1")
        self._max_pairs = max_pairs
        self._kept: pa.Table | None = None
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self.num_asked = 0
        """Pairs looked up, found or not."""
        self.num_missing = 0
        """Of these the missing ones, repeats included."""
        self.num_dropped = 0
        """Of these the ones that the bound made the log forget."""

    @property
    def rate(self) -> float:
        """Share of lookups that missed; 0 before the first one."""
        return self.num_missing / self.num_asked if self.num_asked else 0.0

    def __len__(self) -> int:
        """Distinct missing pairs kept."""
        return len(self._fold())

    def add(self, user_ids: Any, item_ids: Any, found: Any) -> None:
        """Note the pairs of one lookup that were not found.

        Args:
            user_ids: [N] int64 or strings, as given to ``RewardTable.lookup``.
            item_ids: [N], likewise.
            found: bool [N], as ``lookup`` returned it.

        Raises:
            ValueError: where the lengths differ.
        """
        is_missing = pc.invert(pa.array(_plain(found), pa.bool_()))
        users, items = pa.array(_plain(user_ids)), pa.array(_plain(item_ids))
        if not len(users) == len(items) == len(is_missing):
            raise ValueError(
                f"{len(users)} user_ids, {len(items)} item_ids, {len(is_missing)} "
                "found: give what lookup took and returned"
            )
        self.num_asked += len(users)
        missing = pa.table(
            {"user_id": users.filter(is_missing), "item_id": items.filter(is_missing)}
        )
        if not len(missing):
            return
        self.num_missing += len(missing)
        ones = pa.repeat(pa.scalar(1, pa.int64()), len(missing))
        self._pending.append(missing.append_column("count", ones))
        self._num_pending += len(missing)
        if self._num_pending >= max(FOLD_AT_ROWS, self._max_pairs // 4):
            self._fold()

    def write(self, path: Path | str) -> int:
        """Write the kept pairs, the most frequent first; returns how many.

        Columns ``user_id``, ``item_id``, ``source`` ("miss") and ``count`` (int64): the
        judge takes the file as candidates. The log goes on counting.

        Raises:
            ValueError: where nothing is missing: there is no candidate to write.
        """
        kept = self._fold()
        if not len(kept):
            raise ValueError(f"{path}: no pair was missing, so there is none to judge")
        kept = kept.take(
            pc.sort_indices(kept["count"], sort_keys=[("count", "descending")])
        )
        source = pa.repeat(pa.scalar("miss"), len(kept))
        with atomic_file(Path(path)) as temporary:
            pq.write_table(kept.add_column(2, "source", source), temporary)
        return len(kept)

    def save(self, path: Path) -> None:
        """Write all that the log knows; ``load`` counts on from there."""
        numbers = json.dumps([self.num_asked, self.num_missing, self.num_dropped])
        # In the order of the log: ties must be dropped as without an interruption.
        kept = self._fold().replace_schema_metadata({NUMBERS_KEY: numbers})
        with atomic_file(path) as temporary:
            pq.write_table(kept, temporary, write_page_checksum=True)

    def load(self, path: Path) -> None:
        """Add what a log has saved.

        Raises:
            ValueError: naming a file that cannot be read.
        """
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                kept = file.read(columns=COLUMNS)
                numbers = json.loads(file.schema_arrow.metadata[NUMBERS_KEY])
            asked, missing, dropped = map(int, numbers)
            if kept.column_names != COLUMNS:
                raise ValueError(f"its columns are {kept.column_names}")
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it; misses are counted anew"
            ) from error
        self.num_asked += asked
        self.num_missing += missing
        self.num_dropped += dropped
        if len(kept):
            self._pending.append(kept.replace_schema_metadata(None))
            self._num_pending += len(kept)

    def _fold(self) -> pa.Table:
        """Add the pending misses to the kept pairs, within the bound."""
        tables = [*([self._kept] if self._kept is not None else []), *self._pending]
        if not tables:
            return pa.table({name: [] for name in COLUMNS})
        if self._pending:
            keys = COLUMNS[:2]
            summed = pa.concat_tables(tables).group_by(keys, use_threads=False)
            kept = summed.aggregate([("count", "sum")])
            kept = kept.rename_columns(COLUMNS)
            if len(kept) > self._max_pairs:
                order = pc.array_sort_indices(kept["count"], order="descending")
                dropped = kept.take(order[self._max_pairs :])
                self.num_dropped += int(pc.sum(dropped["count"]).as_py())
                kept = kept.take(order[: self._max_pairs])
            self._kept, self._pending, self._num_pending = kept, [], 0
        assert self._kept is not None
        return self._kept


def _plain(values: Any) -> Any:
    return values.cpu().numpy() if isinstance(values, Tensor) else values
