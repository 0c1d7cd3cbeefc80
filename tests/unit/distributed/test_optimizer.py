import math

import pytest
import torch

from sgrec_torchrec.distributed.optimizer import (
    build_optimizer,
    gradient_norm,
    set_learning_rates,
)
from sgrec_torchrec.distributed.schedule import warmup_cosine


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1 / 4),
        (3, 4 / 4),
        (4, 1.0),  # cos 0
        (8, 0.5),  # halfway: cos(pi / 2) = 0
        (12, 0.0),  # cos pi
        (99, 0.0),
    ],
)
def test_warmup_rises_linearly_and_cosine_falls(step, expected):
    assert warmup_cosine(step, 4, 12) == pytest.approx(expected)


def test_schedule_without_warmup_starts_at_one():
    assert warmup_cosine(0, 0, 10) == 1.0


def test_plan_is_row_wise_and_fused_on_the_cpu(world, small_model):
    dmp, _ = small_model.make_trainee(world)
    (plan,) = dmp.plan.plan.values()
    chosen = {
        table: (parameter.sharding_type, parameter.compute_kernel)
        for table, parameter in plan.items()
    }
    assert chosen == {"item": ("row_wise", "fused"), "kind": ("row_wise", "fused")}


def step_once(dmp, optimizer, small_model, dense_lr, table_lr) -> None:
    features, _ = small_model.make_batch(0, 0, 1)
    # zero_grad also hands the rate to the tables' kernel: it must not be needed.
    optimizer.zero_grad(set_to_none=True)
    set_learning_rates(optimizer, dense_lr, table_lr)
    dmp(features).pow(2).sum().backward()
    optimizer.step()


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before if not (before[name] == after[name]).all()}


def test_learning_rates_reach_tables_and_the_rest_in_the_same_step(world, small_model):
    dmp, optimizer = small_model.make_trainee(world)

    def weights():
        state = small_model.snapshot(dmp, optimizer)
        return {name: value for name, value in state.items() if "/" not in name}

    start = weights()
    step_once(dmp, optimizer, small_model, dense_lr=0.0, table_lr=0.0)
    still = weights()
    assert changed(start, still) == set()
    step_once(dmp, optimizer, small_model, dense_lr=0.0, table_lr=0.1)
    tables = weights()
    assert changed(still, tables) == {
        "tables.embeddings.item.weight",
        "tables.embeddings.kind.weight",
    }
    step_once(dmp, optimizer, small_model, dense_lr=0.1, table_lr=0.0)
    assert {"hidden.weight", "norm.weight", "out.bias"} <= changed(tables, weights())


def test_fresh_optimizer_has_zero_state_and_moves_no_weight(world, small_model):
    dmp, optimizer = small_model.make_trainee(world)
    dense = small_model.SmallModel("cpu")
    state = small_model.snapshot(dmp, optimizer)
    assert (state["hidden.weight"] == dense.hidden.weight.detach().numpy()).all()
    parts = {name: value for name, value in state.items() if "/" in name}
    assert any(name.endswith("exp_avg_sq") for name in parts)
    assert all((value == 0).all() for value in parts.values())


def test_gradient_norm_is_reported_before_clipping(world, small_model):
    dmp, optimizer = small_model.make_trainee(world)
    assert math.isnan(gradient_norm(optimizer))
    step_once(dmp, optimizer, small_model, 0.0, 0.0)
    dense = [p for n, p in dmp.named_parameters() if "tables" not in n]
    clipped = torch.stack([p.grad.norm() for p in dense]).norm().item()
    assert gradient_norm(optimizer) > 0.5
    assert clipped == pytest.approx(0.5, rel=1e-4)  # the maximum of make_trainee


def test_only_matrices_decay(world, small_model):
    _, optimizer = small_model.make_trainee(world)
    decays = {
        (parameter.dim(), group["weight_decay"])
        for key, part in optimizer.optimizers
        if key == "dense"
        for group in part.param_groups
        for parameter in group["params"]
    }
    assert decays == {(2, 0.1), (1, 0.0)}


def test_negative_gradient_limit_is_refused(world, small_model):
    dmp, _ = small_model.make_trainee(world)
    with pytest.raises(ValueError, match=r"max_gradient_norm = -1\.0 must be positive"):
        build_optimizer(dmp, dense_lr=0.1, weight_decay=0.0, max_gradient_norm=-1.0)
