"""A model onto its ranks: plan, shard, fuse the table optimizer, initialise tables.

Turns a plain ``nn.Module`` with EmbeddingCollections into a
``DistributedModelParallel``.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.model_parallel import (
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import (
    FixedPercentageStorageReservation,
)
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sgrec_torchrec.distributed.table_init import init_tables

RESERVED_SHARE = 0.15
"""Part of each device's memory that the planner keeps free of tables."""


def shard(
    model: nn.Module,
    *,
    device: torch.device,
    batch_size_per_rank: int,
    table_lr: float,
    seed: int,
    eps: float = 1e-8,
    local_world_size: int | None = None,
) -> DistributedModelParallel:
    """Plan and shard ``model``'s tables over all ranks; replicate the rest (DDP).

    Tables (also on the meta device, which a table larger than one host needs) update
    inside ``backward`` by row-wise Adagrad, and start from ``init_tables(seed)``,
    whatever the number of ranks. All other parameters start as rank 0 has them. DDP
    averages gradients over ranks, and every rank must use every parameter in every
    step. Collective: all ranks call together.

    Args:
        batch_size_per_rank: sequences a step and rank; weighs the planner's costs.
        local_world_size: ranks on this host; None reads ``LOCAL_WORLD_SIZE``.

    Raises:
        ValueError: where the tables do not fit into the memory of the ranks.
    """
    for collection in _collections(model):
        apply_optimizer_in_backward(
            RowWiseAdagrad,
            collection.parameters(),
            # A new dict each time: the callee writes into it.
            {"lr": table_lr, "eps": eps},
        )
    if local_world_size is None:
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    sharder = EmbeddingCollectionSharder()
    with _without_known_advice():
        plan = _plan(model, sharder, device, batch_size_per_rank, local_world_size)
        dmp = DistributedModelParallel(
            module=model,
            device=device,
            plan=plan,
            sharders=[sharder],
            data_parallel_wrapper=DefaultDataParallelWrapper(
                static_graph=True, find_unused_parameters=False
            ),
        )
    init_tables(dmp, seed)
    return dmp


def _collections(model: nn.Module) -> list[EmbeddingCollection]:
    return [one for one in model.modules() if isinstance(one, EmbeddingCollection)]


def _plan(
    model: nn.Module,
    sharder: EmbeddingCollectionSharder,
    device: torch.device,
    batch_size: int,
    local_world_size: int,
) -> ShardingPlan:
    topology = Topology(
        world_size=dist.get_world_size(),
        local_world_size=local_world_size,
        compute_device=device.type,
        ddr_cap=_host_memory_bytes() // local_world_size,
        hbm_cap=_device_memory_bytes(device),
    )
    constraints = {
        config.name: _constraints(device)
        for collection in _collections(model)
        for config in collection.embedding_configs()
    }
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
        debug=False,
    )
    try:
        return planner.collective_plan(model, [sharder], dist.GroupMember.WORLD)
    except PlannerError as error:
        raise ValueError(
            f"the tables do not fit on {dist.get_world_size()} ranks with {device}: "
            f"{error}. Use more ranks, a smaller generator.dim or fewer rows"
        ) from error


def _constraints(device: torch.device) -> ParameterConstraints:
    """What works on the device, and trains tables alike on every number of ranks.

    CPU: fbgemm's dense kernels return pooled rows for sequences (FBGEMM #4586) and
    table-wise would leave ranks idle. CUDA: the planner chooses, except for
    data_parallel, where the optimizer in backward is silently not applied, and
    column_wise, where each shard would keep its own row-wise Adagrad state.
    """
    if device.type == "cpu":
        return ParameterConstraints(
            sharding_types=[ShardingType.ROW_WISE.value],
            compute_kernels=[EmbeddingComputeKernel.FUSED.value],
        )
    return ParameterConstraints(
        sharding_types=[ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value],
        compute_kernels=[
            EmbeddingComputeKernel.FUSED.value,
            EmbeddingComputeKernel.FUSED_UVM_CACHING.value,
            EmbeddingComputeKernel.FUSED_UVM.value,
        ],
    )


def _host_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_memory_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


@contextmanager
def _without_known_advice() -> Iterator[None]:
    """Silence three messages that ask for nothing a user could do; others pass.

    That Topology was not made by a factory (not public in every release), that fx
    tracing is not asked for by its newest name (logged later, in the first step), and
    that torchrec passes ``broadcast_buffers`` to DDP.
    """
    logging.getLogger("torchrec.distributed.planner.types").addFilter(_is_news)
    logging.getLogger("torch.fx._symbolic_trace").addFilter(_is_news)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message="`broadcast_buffers` is deprecated",
            category=FutureWarning,
        )
        yield


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return "TopologyFactory" not in text and "is_fx_tracing will return" not in text
