"""Embedding tables from a hash of (seed, table, row, column): equal on any ranks.

Turns a seed into table weights that do not depend on how tables are sharded.
"""

import hashlib

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection

from sgrec_torchrec.hashing import GOLDEN_GAMMA, shift_right, signed, splitmix64_

CHUNK_ELEMENTS = 1 << 16


@torch.no_grad()
def init_tables(module: nn.Module, seed: int) -> None:
    """Fill every table of every (sharded) EmbeddingCollection inside ``module``.

    The bound is the table's ``weight_init_max``, by default sqrt(1 / num_embeddings).
    Each rank fills its own shards: row-wise, table-wise, column-wise or whole. Work
    and memory grow with the local rows, beside a few MiB. No communication.

    Raises:
        ValueError: for a table whose initial range is not symmetric about 0.
    """
    for child in module.modules():
        if isinstance(child, EmbeddingCollection):
            for config in child.embedding_configs():
                weight = child.embeddings[config.name].weight
                _fill_shard(weight.detach(), config, seed, (0, 0))
        elif isinstance(child, ShardedEmbeddingCollection):
            state = child.state_dict()
            for config in child._embedding_configs:
                weight = state[f"embeddings.{config.name}.weight"]
                for shard, offsets in local_shards(weight):
                    _fill_shard(shard, config, seed, offsets)


def local_shards(weight: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
    """This rank's pieces of a table and their (row, column) offsets in it.

    ``weight`` is a ShardedTensor, or a plain tensor for a table that is not sharded.
    """
    if not hasattr(weight, "local_shards"):
        return [(weight.detach(), (0, 0))]
    return [
        (shard.tensor.detach(), tuple(shard.metadata.shard_offsets))
        for shard in weight.local_shards()
    ]


def _fill_shard(
    shard: Tensor, config: EmbeddingConfig, seed: int, offsets: tuple[int, int]
) -> None:
    """Write a rectangle of the table into ``shard``, by chunks: uniform in (-b, b).

    Each element is a pure function of (seed, table name, row, column, dim): output
    ``row * dim + column`` of splitmix64 (Steele, Lea and Flood 2014) started at a hash
    of seed and name, its top 24 bits mapped to an odd multiple of b / 2^24. CPU and
    CUDA give the same bits.
    """
    low, bound = config.get_weight_init_min(), config.get_weight_init_max()
    if low != -bound:
        raise ValueError(
            f"table {config.name}: weight_init_min = {low} must be -weight_init_max "
            f"= {-bound}"
        )
    num_rows, num_columns = shard.shape
    first_row, first_column = offsets
    start = _table_key(seed, config.name)
    columns = torch.arange(
        first_column, first_column + num_columns, device=shard.device, dtype=torch.int64
    )
    rows_per_chunk = max(1, CHUNK_ELEMENTS // max(1, num_columns))
    for begin in range(0, num_rows, rows_per_chunk):
        end = min(num_rows, begin + rows_per_chunk)
        rows = torch.arange(
            first_row + begin, first_row + end, device=shard.device, dtype=torch.int64
        )
        state = rows[:, None] * config.embedding_dim + (columns + 1)[None, :]
        bits = splitmix64_(state.mul_(signed(GOLDEN_GAMMA)).add_(start))
        odd = shift_right(bits, 40).mul_(2).add_(1 - (1 << 24))
        shard[begin:end] = odd.to(torch.float32).mul_(bound / (1 << 24))


def _table_key(seed: int, table_name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{table_name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
