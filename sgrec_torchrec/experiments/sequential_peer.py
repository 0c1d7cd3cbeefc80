"""A tuned self-attentive model of a kept library, as one more baseline.

RecTools' SASRec lives in an environment of its own (its numpy is older than ours), so
the two meet in Parquet: this module writes the log and the rows, runs the peer's script
(``benchmarks/peers/sequential``) and reads its lists.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from sgrec_torchrec.evaluation.baselines import Fitted
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_graph.graph import histories
from sgrec_torchrec.schema import EvalRows, Int32Array, Sequences

SYSTEM = "SASRec (RecTools)"
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "benchmarks" / "peers" / "sequential"
PYTHON = ROOT / ".venv-sequential" / "bin" / "python"
TUNED = "sasrec-tuned.json"
SHOWN_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialPeer:
    """A ``Baseline``: trains the peer on the fitted period and ranks the rows.

    Hyper-parameters and epochs are searched once, on the valid rows with the train
    period alone, and kept in ``tuned_in``; later seeds and a refit take them over.
    """

    folder: Path
    """Exchange with the peer: one for each period that is learned from."""
    tuned_in: Path
    """Folder of the exchange on the train period alone."""
    seed: int
    max_history: int
    tune_minutes: float
    """Bound of the search."""

    def __call__(self, fitted: Fitted, rows: EvalRows, k: int) -> Int32Array:
        """int32 [E, k] items, best first, -1 beyond the peer's list.

        Raises:
            FileNotFoundError: where the peer's scripts are not there (no checkout).
            RuntimeError: where the peer fails, with the end of what it printed.
        """
        if not SCRIPTS.is_dir():
            raise FileNotFoundError(
                f"{SCRIPTS} is missing: benchmark in a checkout, or with --peer-seeds 0"
            )
        self._export(fitted, rows, k)
        tuned = self.tuned_in / TUNED
        arguments = [str(self.folder), "--seed", str(self.seed)]
        arguments += ["--threads", str(torch.get_num_threads())]
        if tuned.is_file():
            arguments += ["--tuned", str(tuned)]
        else:
            arguments += ["--tune", "--tune-minutes", str(self.tune_minutes)]
        _call("bash", str(SCRIPTS / "setup"))
        _call(str(PYTHON), str(SCRIPTS / "sasrec.py"), *arguments)
        return _read_lists(
            self.folder / f"test-lists-{self.seed}.parquet", len(rows), k
        )

    def _export(self, fitted: Fitted, rows: EvalRows, k: int) -> None:
        sequences = fitted.split.sequences
        self.folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            _events(sequences, fit_ends(sequences, fitted.fit_on)),
            self.folder / "fit.parquet",
        )
        if fitted.fit_on == "train":
            valid = _rows(sequences, fitted.split.valid)
            pq.write_table(valid, self.folder / "valid.parquet")
        pq.write_table(_rows(sequences, rows), self.folder / "test.parquet")
        settings = {
            "num_items": sequences.num_items,
            "filter_seen": fitted.filter_seen,
            "max_history": self.max_history,
            "k": k,
        }
        write_json(self.folder / "settings.json", settings)


def _events(sequences: Sequences, end_U: Int32Array) -> pa.Table:
    user_R, row_R = sequences.events_until(end_U)
    return pa.table(
        {
            "user": pa.array(user_R, pa.int64()),
            "item": pa.array(sequences.items_R[row_R], pa.int64()),
            "position": pa.array(row_R - sequences.offsets_U1[user_R], pa.int64()),
        }
    )


def _rows(sequences: Sequences, rows: EvalRows) -> pa.Table:
    indptr, items_H = histories(sequences, rows)
    return pa.table(
        {
            "row": pa.array(np.arange(len(rows)), pa.int64()),
            "history": pa.LargeListArray.from_arrays(
                pa.array(indptr, pa.int64()), pa.array(items_H, pa.int64())
            ),
            "target": pa.array(rows.target_E, pa.int64()),
        }
    )


def _call(*command: str) -> None:
    done = subprocess.run(
        command,
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        shown = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
        raise RuntimeError(f"{' '.join(command)} failed:\n{shown}")


def _read_lists(path: Path, num_rows: int, k: int) -> Int32Array:
    table = pq.read_table(path)
    if table["row"].to_pylist() != list(range(num_rows)):
        raise ValueError(f"{path} does not hold the {num_rows} rows asked, in order")
    items_EK = np.full((num_rows, k), -1, dtype=np.int32)
    lists = table["items"].combine_chunks()
    length_E = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    row, place = np.nonzero(np.arange(k) < length_E[:, None])
    start_E = np.cumsum(length_E) - length_E
    items_EK[row, place] = pc.list_flatten(lists).to_numpy()[start_E[row] + place]
    return items_EK
