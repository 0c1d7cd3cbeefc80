"""The generator as a server runs it: whole tables, backbone and code decoder.

Parameters have the names that training gave them, so a checkpoint's weights fit as they
are. Letters: T positions of all histories end to end, D width.
"""

import torch
from torch import Tensor, nn

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.generator.backbone import Backbone
from sgrec_torchrec.generator.decoder import CodeDecoder
from sgrec_torchrec.generator.table_rows import table_rows
from sgrec_torchrec.schema import feature_names

INT8_MAX = 127


class Int8Table(nn.Module):
    """Rows as int8 with a scale each: 1 + 4 / D bytes a weight instead of 4."""

    weight: Tensor
    scale: Tensor

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros((num_rows, dim), dtype=torch.int8))
        self.register_buffer("scale", torch.zeros((num_rows, 1)))

    def forward(self, id_T: Tensor) -> Tensor:
        """float32 [T, D]."""
        return self.weight[id_T].float() * self.scale[id_T]


def quantise(weight_RD: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [R, D] and float32 [R, 1]: weight ~ int8 * scale, off by <= scale / 2.

    A row's scale is its largest weight / 127. Asks for finite weights.
    """
    scale_R1 = weight_RD.abs().amax(dim=1, keepdim=True) / INT8_MAX
    safe_R1 = scale_R1.masked_fill(scale_R1 == 0, 1.0)
    return (weight_RD / safe_R1).round().to(torch.int8), scale_R1


class Tables(nn.Module):
    """The tables of ``generator.embedding``, plain."""

    def __init__(
        self, rows: dict[str, tuple[int, list[str]]], dim: int, *, is_int8: bool
    ) -> None:
        super().__init__()
        make = Int8Table if is_int8 else nn.Embedding
        self.embeddings = nn.ModuleDict(
            {name: make(num_rows, dim) for name, (num_rows, _) in rows.items()}
        )
        self.table_of = {
            feature: name
            for name, (_, features) in rows.items()
            for feature in features
        }


class DensePart(nn.Module):
    """What training calls the tower."""

    def __init__(self, config: GeneratorConfig, num_levels: int, num_codes: int):
        super().__init__()
        self.backbone = Backbone.of(config)
        self.decoder = CodeDecoder.of(config, num_levels, num_codes)


class Network(nn.Module):
    """All weights. Knows nothing of requests."""

    def __init__(
        self,
        *,
        config: GeneratorConfig,
        num_items: int,
        num_levels: int,
        num_codes: int,
        num_event_types: int,
        is_int8: bool = False,
    ) -> None:
        super().__init__()
        rows = table_rows(
            num_items=num_items,
            num_levels=num_levels,
            num_codes=num_codes,
            num_gap_buckets=config.num_gap_buckets,
            num_event_types=num_event_types,
            num_value_buckets=config.num_value_buckets,
        )
        self.tables = Tables(rows, config.dim, is_int8=is_int8)
        self.tower = DensePart(config, num_levels, num_codes)
        self.features = feature_names(num_levels)

    def inputs(self, ids_KT: Tensor) -> Tensor:
        """float32 [T, D]: the sum of what the tables say of each position.

        ``ids_KT``: int64, as ``logs.features.history_ids``.
        """
        # In the order of training: a sum of floats depends on it.
        parts = [
            self.tables.embeddings[self.tables.table_of[name]](ids_T)
            for name, ids_T in zip(self.features, ids_KT, strict=True)
        ]
        total_TD: Tensor = parts[0]
        for part_TD in parts[1:]:
            total_TD = total_TD + part_TD
        return total_TD

    def table_bytes(self) -> int:
        """Memory of the tables."""
        tensors = self.tables.state_dict().values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
