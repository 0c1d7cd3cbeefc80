"""What the base of the wheel promises, outside the checkout: no torchrec.

PYTHONPATH=FOLDER python .ci/check_wheel.py FOLDER, where FOLDER is what `pip install
--target` wrote. Fails where the package is read from anywhere else.
"""

import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import sgrec_torchrec
from sgrec_torchrec.a2po.advantage import Rewards, a2po_advantage
from sgrec_torchrec.a2po.loss import PolicyTerms
from sgrec_torchrec.doctor import inspect_installation
from sgrec_torchrec.reward_table import RewardTable, build_reward_table
from sgrec_torchrec.serving import Recommender

EXTRAS = {"torchrec", "fbgemm_gpu", "torchx", "duckdb", "faiss", "matplotlib"}


def main(folder: Path) -> None:
    """Look up, compute, import; an assertion says what is wrong."""
    assert sgrec_torchrec.__file__, "no package"
    assert Path(sgrec_torchrec.__file__).is_relative_to(folder), sgrec_torchrec.__file__
    for page in ("serving/server/page.html", "report/run_page.html.j2", "py.typed"):
        assert (folder / "sgrec_torchrec" / page).is_file(), page
    with tempfile.TemporaryDirectory() as name:
        pairs, table = Path(name, "pairs.parquet"), Path(name, "table")
        columns = {
            "user_id": [1, 1, 2],
            "item_id": [7, 8, 7],
            "reward": [0.0, 1.0, 1.0],
        }
        pq.write_table(pa.table(columns), pairs)
        build_reward_table(pairs, table)
        rewards, found = RewardTable.open(table).lookup([1, 1, 2, 2], [7, 8, 7, 8])
        assert found.tolist() == [True, True, True, False]
        assert rewards[:3].tolist() == [0.0, 1.0, 1.0]
    r_BG = torch.tensor([[1.0, 0.0]])
    stats = a2po_advantage(Rewards.of(r_BG, r_BG, torch.ones_like(r_BG).bool()))
    assert torch.isfinite(stats.advantage_BG).all()
    assert Recommender.load
    assert PolicyTerms
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & EXTRAS, loaded & EXTRAS
    assert inspect_installation().root is None
    print(f"the wheel in {folder} builds and reads a table without torchrec")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
