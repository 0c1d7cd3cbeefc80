"""A run and the package made of it, on the test rows: what the export cost.

Letters: E test rows.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.evaluation.ranking import metric_values, target_ranks
from sgrec_torchrec.files.run_folder import SPLIT
from sgrec_torchrec.logs.split_store import load_split
from sgrec_torchrec.schema import EvalRows, Float32Array, Int32Array, SplitLog
from sgrec_torchrec.serving.history import History
from sgrec_torchrec.serving.recommender import Recommender
from sgrec_torchrec.serving.run_files import event_types, find_run, row_history

DEPTH = 10
ROWS_A_CALL = 256


def describe_package(folder: Path, manifest: dict[str, Any]) -> str:
    """What was written, in two lines."""
    files = manifest["files"]
    total = sum(entry["bytes"] for entry in files.values())
    kind = "int8" if manifest["is_int8"] else "float32"
    return (
        f"package: {folder}, {len(files)} files, {total / 1e6:.1f} MB\n"
        f"tables: {kind}, {manifest['table_bytes'] / 1e6:.2f} MB in memory"
    )


def measure_package(run: Path, folder: Path) -> str:
    """Rank the run's test rows with run and package and compare, as lines of text.

    Raises:
        FileNotFoundError, ValueError: as ``Recommender.load``.
    """
    found = find_run(run)
    split = load_split(found.run_dir / SPLIT)
    names = event_types(found.run_dir)
    rows = split.test
    lists, ndcg, table_bytes = [], [], []
    for path in (run, folder):
        recommender = Recommender.load(path)
        lists.append(ranked(recommender, split, rows, names))
        rank_E = target_ranks(lists[-1][0], rows.target_E)
        ndcg.append(float(metric_values(rank_E, (DEPTH,))[:, 1].mean()))
        table_bytes.append(recommender.parts.network.table_bytes())
    (items_EK, score_EK), (other_EK, other_score_EK) = lists
    same = float((items_EK == other_EK).all(axis=1).mean())
    gap_EK = np.abs(score_EK - other_score_EK)[(items_EK >= 0) & (other_EK >= 0)]
    loss = 100 * (1 - ndcg[1] / ndcg[0]) if ndcg[0] else 0.0
    return (
        f"NDCG@{DEPTH} on {len(rows)} test rows: run {ndcg[0]:.5f}, package "
        f"{ndcg[1]:.5f} (loss {loss:.3f} %)\n"
        f"lists of {DEPTH} equal in {100 * same:.2f} % of rows; scores differ by at "
        f"most {gap_EK.max(initial=0.0):.2e} nats, by place\n"
        f"tables in memory: run {table_bytes[0]:,} bytes, package {table_bytes[1]:,} "
        f"({table_bytes[1] / table_bytes[0]:.3f}x)"
    )


def ranked(
    recommender: Recommender, split: SplitLog, rows: EvalRows, names: tuple[str, ...]
) -> tuple[Int32Array, Float32Array]:
    """int32 items and float32 scores [E, DEPTH]: the list of each row, -1 beyond."""
    item_EK = np.full((len(rows), DEPTH), -1, dtype=np.int32)
    score_EK = np.full((len(rows), DEPTH), -np.inf, dtype=np.float32)
    starts = range(0, len(rows), ROWS_A_CALL)
    for first in progress(starts, description="test rows", unit="batch"):
        places = range(first, min(first + ROWS_A_CALL, len(rows)))
        histories = [row_events(split, rows, row, names) for row in places]
        k = min(DEPTH, recommender.max_k)
        for row, found in zip(places, recommender.recommend(histories, k), strict=True):
            size = len(found.item_ids)
            item_EK[row, :size] = recommender.catalogue.indices(found.item_ids, "item")
            score_EK[row, :size] = found.scores
    return item_EK, score_EK


def row_events(
    split: SplitLog, rows: EvalRows, row: int, names: tuple[str, ...]
) -> History:
    """What the user of an evaluation row had done before its target."""
    user = int(rows.user_E[row])
    end = split.sequences.offsets_U1[user] + rows.history_end_E[row]
    return row_history(split, names, user, int(end))
