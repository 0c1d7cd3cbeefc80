import logging

import pytest
import torch

from sgrec_torchrec.distributed import sharding


def test_tables_larger_than_memory_are_refused_with_the_mend(
    world, small_model, monkeypatch
):
    monkeypatch.setattr(sharding, "_host_memory_bytes", lambda: 1000)
    with pytest.raises(ValueError, match="do not fit on 1 ranks with cpu") as error:
        small_model.make_trainee(world)
    assert "Use more ranks" in str(error.value)


def test_a_gpu_may_choose_any_layout_that_trains_alike():
    allowed = sharding._constraints(torch.device("cuda", 0))
    assert set(allowed.sharding_types) == {"row_wise", "table_wise"}
    assert "dense" not in allowed.compute_kernels


def test_only_the_known_advice_is_silenced(world, small_model, caplog):
    small_model.make_trainee(world)
    logger = logging.getLogger("torchrec.distributed.planner.types")
    logger.warning("something new")
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one.getMessage() for one in warnings] == ["something new"]


def test_sharding_twice_in_one_process_keeps_the_settings_apart(world, small_model):
    # The optimizer's settings are a dict into which torch writes.
    for _ in range(2):
        dmp, optimizer = small_model.make_trainee(world)
        losses = small_model.train(dmp, optimizer, world, range(2))
        assert losses[1] < losses[0] * 2
