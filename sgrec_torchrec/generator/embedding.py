"""Sharded tables -> the input vector of every history position."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from sgrec_torchrec.generator.table_rows import table_rows
from sgrec_torchrec.schema import feature_names


def build_tables(
    *,
    num_items: int,
    num_levels: int,
    num_codes: int,
    num_gap_buckets: int,
    num_event_types: int,
    num_value_buckets: int,
    dim: int,
    device: torch.device | None = None,
) -> EmbeddingCollection:
    """The TorchRec tables of ``TokenBatch.features``, unsharded, float32 [rows, dim].

    See ``table_rows``. On the ``meta`` device nothing is allocated: a table larger than
    one host needs that.
    """
    tables = table_rows(
        num_items=num_items,
        num_levels=num_levels,
        num_codes=num_codes,
        num_gap_buckets=num_gap_buckets,
        num_event_types=num_event_types,
        num_value_buckets=num_value_buckets,
    )
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=name,
                num_embeddings=num_rows,
                embedding_dim=dim,
                feature_names=features,
            )
            for name, (num_rows, features) in tables.items()
        ],
        device=device,
    )


class InputSum(nn.Module):
    """Adds up what is known of a position: item, codes, gap, event, value."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.names = feature_names(num_levels)

    def forward(self, looked_up: Mapping[str, JaggedTensor]) -> Tensor:
        """float [T, D] from one JaggedTensor [T, D] per feature, all equally long."""
        total_TD: Tensor = looked_up[self.names[0]].values()
        for name in self.names[1:]:
            total_TD = total_TD + looked_up[name].values()
        return total_TD
