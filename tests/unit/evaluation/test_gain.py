"""Before and after post-training, row by row."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.evaluation.compare import COLUMNS, hits_path
from sgrec_torchrec.evaluation.gain import write_gain
from sgrec_torchrec.evaluation.offline import without_nan
from sgrec_torchrec.files.sealed_json import without_seal


def write(path: Path, ranks: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [
        [f"u{row}" for row in range(len(ranks))],
        np.arange(len(ranks)),
        ["i"] * len(ranks),
        np.array(ranks, np.int32),
    ]
    table = pa.table(columns, schema=pa.schema(COLUMNS))
    pq.write_table(table, path, write_page_checksum=True)


def test_gain_is_what_ships_less_what_was_pretrained(tmp_path: Path) -> None:
    write(hits_path(tmp_path / "evaluation-pretrained", "generator"), [1, 0, 0, 11])
    write(hits_path(tmp_path / "evaluation", "generator"), [1, 2, 0, 10])
    write_gain(tmp_path)
    gain = json.loads((tmp_path / "aligned" / "gain.json").read_text())
    assert without_seal(gain).keys() == {"generator"}
    assert gain != without_seal(gain)
    hits = {part["metric"]: part for part in gain["generator"]["differences"]}["HR@10"]
    # 1 of 4 before, 3 of 4 after.
    assert (hits["value_a"], hits["value_b"], hits["difference"]) == (0.25, 0.75, 0.5)


def test_an_interval_that_there_is_not_is_null() -> None:
    parts = ({"low": float("nan"), "value_a": 0.5},)
    assert without_nan({"differences": parts}) == {
        "differences": [{"low": None, "value_a": 0.5}]
    }


def test_a_run_without_an_earlier_evaluation_is_named(tmp_path: Path) -> None:
    write(hits_path(tmp_path / "evaluation", "generator"), [1])
    with pytest.raises(FileNotFoundError, match="evaluation-pretrained"):
        write_gain(tmp_path)
