"""Advantages of judged rollouts, a bounded sample of a run: how rewards were fused.

``aligned/advantages-<rank>.parquet``: step int32; business, semantic, lambda, advantage
float32. Each rank keeps its own; ranks do not communicate.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from sgrec_torchrec.a2po.advantage import AdvantageStats
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.run_folder import ADVANTAGES, nth

MAX_ROWS = 4096
MAX_ROWS_PER_STEP = 128
COLUMNS: dict[str, pa.DataType] = {
    "step": pa.int32(),
    "business": pa.float32(),
    "semantic": pa.float32(),
    "lambda": pa.float32(),
    "advantage": pa.float32(),
}
SCHEMA = pa.schema(COLUMNS)


class FusionSample:
    """The first judged rollouts of live groups, so many a step and so many in all."""

    def __init__(self, folder: Path, rank: int, first_step: int) -> None:
        """Go on with what an interrupted run kept of the steps before ``first_step``.

        Raises:
            ValueError: naming a file that cannot be read.
        """
        self.path = folder / nth(ADVANTAGES, rank)
        self._table = SCHEMA.empty_table()
        if first_step and self.path.is_file():
            try:
                table = pq.read_table(self.path, schema=SCHEMA)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(
                    f"{self.path} is damaged ({error}): delete it; a sample is lost"
                ) from error
            is_before = pc.less(table["step"], pa.scalar(first_step, pa.int32()))
            self._table = table.filter(is_before)

    def add(self, step: int, stats: AdvantageStats, judged_BG: Tensor) -> None:
        """Keep rollouts that the semantic term speaks of, within the bounds."""
        free = min(MAX_ROWS - len(self._table), MAX_ROWS_PER_STEP)
        speaks_BG = judged_BG & (stats.is_live_B & stats.is_judged_B)[:, None]
        if free <= 0 or not bool(speaks_BG.any()):
            return
        parts = (
            stats.business_BG,
            stats.semantic_BG,
            stats.lambda_BG,
            stats.advantage_BG,
        )
        columns = [
            pa.array(part[speaks_BG][:free].float().cpu().numpy()) for part in parts
        ]
        steps = pa.repeat(pa.scalar(step, pa.int32()), len(columns[0]))
        rows = pa.table([steps, *columns], schema=SCHEMA)
        self._table = pa.concat_tables([self._table, rows])

    def write(self) -> None:
        """Write what is kept, whole or not at all; nothing where nothing was judged."""
        if len(self._table):
            with atomic_file(self.path) as temporary:
                pq.write_table(self._table, temporary)
