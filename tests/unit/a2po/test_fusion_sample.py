"""The kept advantages: judged rollouts of live groups, bounded, gone on with."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sgrec_torchrec.a2po import fusion_sample
from sgrec_torchrec.a2po.advantage import Rewards, a2po_advantage
from sgrec_torchrec.a2po.fusion_sample import FusionSample

BUSINESS_BG = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
SEMANTIC_BG = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
JUDGED_BG = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
"""The second group is not judged, the third is dead."""
STATS = a2po_advantage(Rewards.of(BUSINESS_BG, SEMANTIC_BG, JUDGED_BG))


def kept(folder: Path) -> list[dict]:
    return pq.read_table(folder / "advantages-00000.parquet").to_pylist()


def test_judged_rollouts_of_live_groups_are_kept_as_they_were(tmp_path: Path) -> None:
    sample = FusionSample(tmp_path, 0, 0)
    sample.add(7, STATS, JUDGED_BG)
    sample.write()
    rows = kept(tmp_path)
    assert [row["step"] for row in rows] == [7, 7]
    # (1, 0, -1) has mean 0 and deviation 1; (.9, .5) has -+.2 / (.2 sqrt 2) = .7071.
    assert [row["business"] for row in rows] == pytest.approx([1.0, 0.0])
    assert [row["semantic"] for row in rows] == pytest.approx([0.70711, -0.70711], 1e-4)
    assert [row["lambda"] for row in rows] == pytest.approx([0.70711, 0.0], 1e-4)
    assert [row["advantage"] for row in rows] == pytest.approx([1.5, 0.0], 1e-4)


def test_bounds_hold_for_a_step_and_for_a_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fusion_sample, "MAX_ROWS_PER_STEP", 1)
    monkeypatch.setattr(fusion_sample, "MAX_ROWS", 3)
    sample = FusionSample(tmp_path, 0, 0)
    for step in range(9):
        sample.add(step, STATS, JUDGED_BG)
    sample.write()
    assert [row["step"] for row in kept(tmp_path)] == [0, 1, 2]


def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path) -> None:
    sample = FusionSample(tmp_path, 0, 0)
    for step in range(4):
        sample.add(step, STATS, JUDGED_BG)
    sample.write()
    again = FusionSample(tmp_path, 0, 2)
    again.add(2, STATS, JUDGED_BG)
    again.write()
    assert [row["step"] for row in kept(tmp_path)] == [0, 0, 1, 1, 2, 2]
    fresh = FusionSample(tmp_path, 0, 0)
    fresh.add(5, STATS, JUDGED_BG)
    fresh.write()
    assert [row["step"] for row in kept(tmp_path)] == [5, 5]


def test_nothing_judged_writes_nothing(tmp_path: Path) -> None:
    sample = FusionSample(tmp_path, 0, 0)
    sample.add(0, STATS, torch.zeros_like(JUDGED_BG))
    sample.write()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_sample_is_named(tmp_path: Path) -> None:
    (tmp_path / "advantages-00000.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match="parquet is damaged"):
        FusionSample(tmp_path, 0, 1)
