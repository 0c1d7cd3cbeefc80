"""Sharded equals unsharded, on any number of ranks, through a checkpoint too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sgrec_torchrec.distributed.checkpoint import load_unsharded
from sgrec_torchrec.distributed.table_init import init_tables

WORLD_SIZES = (1, 2, 4)


@pytest.fixture(scope="module")
def small_model(monkeypatch_module):
    monkeypatch_module.syspath_prepend(str(Path(__file__).parent / "ranks"))
    import small_model

    return small_model


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def runs(run_ranks, checkpoints):
    """World size -> arrays; 2 ranks train and save, then 1, 4 and 2 ranks load."""
    seen = {}
    for name, world_size, action in (
        ("saved", 2, "save"),
        (1, 1, "load"),
        (4, 4, "load"),
    ):
        out = checkpoints / f"{name}.npz"
        done = run_ranks("training.py", world_size, checkpoints, out, action)
        assert done.exit_codes == [0] * world_size, "\n".join(done.outputs)
        seen[name] = dict(np.load(out, allow_pickle=False))
    seen[2] = seen["saved"]
    return seen


def part(run: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in run.items() if k.startswith(prefix)}


def test_every_world_size_starts_from_equal_weights(runs, small_model):
    plain = small_model.SmallModel("cpu")
    init_tables(plain, small_model.SEED)
    for world_size in WORLD_SIZES:
        start = part(runs[world_size], "start/")
        for name, value in plain.state_dict().items():
            np.testing.assert_array_equal(start[name], value.numpy(), err_msg=name)


def test_losses_agree_on_every_world_size(runs):
    for world_size in WORLD_SIZES:
        got = runs[world_size]["losses"]
        np.testing.assert_allclose(got, runs[2]["losses"], rtol=1e-5)
    assert runs[2]["losses"][2] < runs[2]["losses"][0]


def test_sharded_training_equals_a_plain_reference(runs, small_model):
    plain = small_model.SmallModel("cpu")
    init_tables(plain, small_model.SEED)
    losses = train_plainly(plain, small_model, num_steps=3)
    np.testing.assert_allclose(runs[2]["losses"], losses, rtol=1e-5)
    middle = part(runs[2], "middle/")
    for name, value in plain.state_dict().items():
        np.testing.assert_allclose(
            middle[name], value.numpy(), rtol=1e-4, atol=1e-6, err_msg=name
        )


def train_plainly(plain, small_model, num_steps: int) -> list[float]:
    """The whole batch in one process: row-wise Adagrad by hand, torch's own AdamW."""
    tables = dict(plain.tables.named_parameters())
    momentum = {name: torch.zeros(len(table)) for name, table in tables.items()}
    rest = [p for n, p in plain.named_parameters() if not n.startswith("tables.")]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() == 2], "weight_decay": 0.1},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=small_model.DENSE_LR,
    )
    losses = []
    for step in range(num_steps):
        features, num_positions = small_model.make_batch(step, 0, 1)
        plain.zero_grad()
        loss = (plain(features) - 1).pow(2).sum() / num_positions
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest, 0.5)
        adamw.step()
        with torch.no_grad():
            for name, table in tables.items():
                momentum[name] += table.grad.pow(2).mean(dim=1)
                scale = small_model.TABLE_LR / (momentum[name].sqrt() + 1e-8)
                table -= scale[:, None] * table.grad
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("world_size", [1, 4])
def test_state_saved_on_2_ranks_loads_bit_equal(runs, world_size):
    saved, loaded = part(runs["saved"], "middle/"), part(runs[world_size], "middle/")
    assert saved.keys() == loaded.keys()
    assert any("momentum1" in name for name in saved)
    assert any("exp_avg_sq" in name for name in saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


@pytest.mark.parametrize("world_size", [1, 4])
def test_resumed_losses_equal_the_uninterrupted_ones(runs, world_size):
    np.testing.assert_allclose(
        runs[world_size]["later_losses"], runs["saved"]["later_losses"], rtol=1e-5
    )


def test_what_was_trained_sharded_is_served_unsharded(runs, small_model, checkpoints):
    plain = small_model.SmallModel("cpu")
    load_unsharded(checkpoints / "step-000000000003", plain)
    middle = part(runs["saved"], "middle/")
    for name, value in plain.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), middle[name], err_msg=name)
