"""A MiniOneRec folder (pre-split rows of history and target) -> a canonical log.

Its rows carry no timestamps. A user's first row gives the start of the sequence, every
later row adds its target; each row's history is then checked against what was rebuilt.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.logs.canonical_write import write_canonical
from sgrec_torchrec.logs.import_report import ImportReport, Origin
from sgrec_torchrec.logs.importers.locate import resolve_path
from sgrec_torchrec.logs.importers.minionerec_files import (
    SPLITS,
    MiniOneRecFiles,
    SplitRow,
    find_files,
    read_catalogue,
    read_rows,
)
from sgrec_torchrec.logs.incoming import Incoming


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """Events of all users in global order: train, then valid, then test rows."""

    user_R: list[str]
    item_R: list[int]
    split_R: list[str]
    counts: dict[str, int]


def import_minionerec(path: str | None, out_dir: Path) -> ImportReport:
    """Import a flat folder (valid.csv, test.csv, ...) or a clone's data/Amazon.

    Where one folder holds several categories, ``path`` is one of the category's CSV
    files. Timestamps are ordinals: train before valid before test, rows in file order,
    each user in true order. Without the train split, only the train events that valid
    and test histories show are recovered. Rows are read into memory (Python lists):
    this format is for academic logs, the table importer takes large ones.

    Raises:
        FileNotFoundError: naming what is not there.
        ValueError: naming file, line, column and mend; also where a row's history is
            not the end of its user's earlier events.
    """
    files = find_files(resolve_path(path, "minionerec"))
    rows = [row for split in SPLITS for row in _read_split(files, split)]
    rebuilt = rebuild(rows)
    items, sid_counts = read_catalogue(files)
    name = ", ".join(str(files.rows[split]) for split in SPLITS if split in files.rows)
    train = "" if "train" in files.rows else "; train split absent, partly recovered"
    origin = Origin(
        importer="minionerec",
        has_clock=False,
        counts=rebuilt.counts | sid_counts,
        note=f"MiniOneRec folder {files.root.resolve()} (Apache-2.0){train}",
    )
    log = pa.table(
        {
            "user_id": pa.array(rebuilt.user_R, pa.string()),
            "item_id": pa.array(rebuilt.item_R, pa.int64()),
            "timestamp": pa.array(np.arange(len(rebuilt.user_R))),
            "split": pa.array(rebuilt.split_R, pa.string()),
        }
    )
    return write_canonical(
        out_dir,
        Incoming(name=name, source=log),
        Incoming(name=str(files.items), source=items),
        origin,
    )


def _read_split(files: MiniOneRecFiles, split: str) -> list[SplitRow]:
    if split not in files.rows:
        return []
    path = files.rows[split]
    rows = read_rows(path, split)
    return list(progress(rows, description=f"reading {path.name}", unit="row"))


def rebuild(rows: list[SplitRow]) -> Rebuilt:
    """Users' sequences from rows in time order (train, valid, test).

    An item that a user's first row shows as history is a train event: had it been a
    target of valid or test, its own row would stand earlier. Only a history of one
    item tells no time (a first event has no row anywhere); such users are counted.

    Raises:
        ValueError: where a history disagrees with the rows before it; with the count
            of all such rows, the first one's file and line, and the mend.
    """
    max_history = max((len(row.history) for row in rows), default=0)
    sequences: dict[str, list[int]] = {}
    events: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    differing: list[tuple[SplitRow, list[int]]] = []
    counts = dict.fromkeys(_COUNTS, 0)
    for row in rows:
        if row.user not in sequences:
            sequences[row.user] = list(row.history)
            events["train"] += [(row.user, item) for item in row.history]
            counts["train_rows_recovered_from_histories"] += len(row.history) - 1
            counts["users_recovered_from_histories"] += row.split != "train"
            is_undated = row.split != "train" and len(row.history) == 1
            counts["users_whose_only_train_event_is_undated"] += is_undated
        expected = sequences[row.user][-max_history:]
        if expected != row.history:
            differing.append((row, expected))
        sequences[row.user].append(row.target)
        events[row.split].append((row.user, row.target))
        counts[f"{row.split}_rows"] += 1
    if differing:
        raise ValueError(_disagreement(differing, len(rows)))
    counts["max_history_of_rows"] = max_history
    ordered = [(*event, split) for split in SPLITS for event in events[split]]
    return Rebuilt(
        user_R=[user for user, _, _ in ordered],
        item_R=[item for _, item, _ in ordered],
        split_R=[split for _, _, split in ordered],
        counts=counts,
    )


_COUNTS = (
    "train_rows",
    "valid_rows",
    "test_rows",
    "train_rows_recovered_from_histories",
    "users_recovered_from_histories",
    "users_whose_only_train_event_is_undated",
    "rows_whose_history_disagrees",
)


def _disagreement(differing: list[tuple[SplitRow, list[int]]], num_rows: int) -> str:
    row, expected = differing[0]
    return (
        f"{row.path}, line {row.line}, column 'history_item_id': user {row.user!r} has "
        f"history {row.history}, but the rows before it end with {expected} "
        f"({len(differing)} of {num_rows} rows disagree); sort each file by time and "
        "keep every row of a user, or mend the row"
    )
