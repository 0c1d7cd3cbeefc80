"""A small model with a table of 3 rows, its data, and its weights as whole arrays."""

import numpy as np
import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from sgrec_torchrec.distributed.launch import Ranks, all_gather_rows
from sgrec_torchrec.distributed.optimizer import build_optimizer, set_learning_rates
from sgrec_torchrec.distributed.sharding import shard
from sgrec_torchrec.distributed.table_init import local_shards

SEED = 7
DIM = 8
ROWS = {"item": 50, "kind": 3}
DENSE_LR = 0.01
TABLE_LR = 0.1
GLOBAL_BATCH = 8


class SmallModel(nn.Module):
    """Sum of two lookups -> one number a position."""

    def __init__(self, device: str = "meta", num_items: int = ROWS["item"]) -> None:
        super().__init__()
        rows = {**ROWS, "item": num_items}
        self.tables = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=name,
                    num_embeddings=num_rows,
                    embedding_dim=DIM,
                    feature_names=[name],
                )
                for name, num_rows in rows.items()
            ],
            device=torch.device(device),
        )
        self.hidden = nn.Linear(DIM, DIM)
        self.norm = nn.LayerNorm(DIM)
        self.out = nn.Linear(DIM, 1)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for layer in (self.hidden, self.out):
                layer.weight.uniform_(-0.4, 0.4, generator=generator)
                layer.bias.zero_()

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        looked_up = self.tables(features)
        total_TD = looked_up["item"].values() + looked_up["kind"].values()
        return self.out(self.norm(torch.tanh(self.hidden(total_TD)))).squeeze(-1)


def make_batch(step: int, rank: int, world_size: int) -> tuple[KeyedJaggedTensor, int]:
    """This rank's sequences of a global batch, and its number of positions in all.

    Lengths are 0 to 4; ids repeat, so that duplicate rows are trained.
    """
    generator = np.random.default_rng(step)
    lengths_B = generator.integers(0, 5, GLOBAL_BATCH)
    ends_B = np.cumsum(lengths_B)
    num_positions = int(ends_B[-1])
    ids = {name: generator.integers(0, ROWS[name], num_positions) for name in ROWS}
    share = GLOBAL_BATCH // world_size
    first, last = rank * share, (rank + 1) * share
    begin, end = int(ends_B[first] - lengths_B[first]), int(ends_B[last - 1])
    features = KeyedJaggedTensor.from_lengths_sync(
        keys=list(ROWS),
        values=torch.from_numpy(
            np.concatenate([ids[name][begin:end] for name in ROWS])
        ),
        lengths=torch.from_numpy(np.tile(lengths_B[first:last], len(ROWS))),
    )
    return features, num_positions


def make_trainee(ranks: Ranks, **changes: int):
    """The sharded model and its optimizer."""
    dmp = shard(
        SmallModel(**changes),
        device=ranks.device,
        batch_size_per_rank=GLOBAL_BATCH // ranks.world_size,
        table_lr=TABLE_LR,
        seed=SEED,
    )
    optimizer = build_optimizer(
        dmp, dense_lr=DENSE_LR, weight_decay=0.1, max_gradient_norm=0.5
    )
    return dmp, optimizer


def train(dmp, optimizer, ranks: Ranks, steps: range) -> list[float]:
    """Mean squared output over the global batch, at each step."""
    losses = []
    for step in steps:
        features, num_positions = make_batch(step, ranks.rank, ranks.world_size)
        set_learning_rates(optimizer, DENSE_LR, TABLE_LR)
        optimizer.zero_grad(set_to_none=True)
        # DDP and torchrec average over ranks; times world_size makes it the sum.
        total = (dmp(features) - 1).pow(2).sum() / num_positions
        (total * ranks.world_size).backward()
        optimizer.step()
        losses.append(float(all_gather_rows(total[None]).sum()))
    return losses


def snapshot(dmp, optimizer) -> dict[str, np.ndarray]:
    """Weights and optimizer state as whole arrays, on every rank (row-wise shards)."""
    tensors = dict(dmp.state_dict())
    for name, parts in optimizer.state_dict()["state"].items():
        tensors |= {f"{name}/{part}": value for part, value in parts.items()}
    return {name: whole(value).numpy() for name, value in tensors.items()}


def whole(value) -> Tensor:
    if not hasattr(value, "local_shards"):
        return value.detach().clone()
    mine = [shard for shard, _ in local_shards(value)]
    empty = torch.empty(0, *value.metadata().size[1:])
    return all_gather_rows(torch.cat([empty, *mine]))
