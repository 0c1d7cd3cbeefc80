"""What the base of the wheel promises, outside the checkout: no torchrec.

VENV/bin/python .ci/check_base.py, in another folder: a wheel of which VENV has the base
alone. Fails where the package is read from anywhere else.
"""

import sys
import sysconfig
import tempfile
from importlib.util import find_spec
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


def main() -> None:
    """Look up, compute, import; an assertion says what is wrong."""
    folder = Path(sysconfig.get_path("purelib"))
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
    absent = {name for name in EXTRAS if find_spec(name) is None}
    assert absent == EXTRAS, f"not the base alone: {sorted(EXTRAS - absent)} are there"
    print("the base builds and reads a table; torchrec is not there")


if __name__ == "__main__":
    main()
