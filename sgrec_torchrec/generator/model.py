"""The generator: tables, backbone and code decoder, with its pretraining loss.

Letters: T positions, B sequences, S targets, L levels, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.generator.backbone import Backbone
from sgrec_torchrec.generator.decoder import CodeDecoder, item_logprob
from sgrec_torchrec.generator.embedding import InputSum, build_tables
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import LearningBatch, StepOutput


class Tower(nn.Module):
    """All that is dense: backbone and code decoder.

    A module of its own, so that the train pipeline's tracer takes it as a leaf and
    looks only at the tables before it.
    """

    def __init__(self, *, config: GeneratorConfig, trie: PrefixTrie) -> None:
        super().__init__()
        self.trie = trie
        self.input_sum = InputSum(trie.num_levels)
        self.backbone = Backbone.of(config)
        self.decoder = CodeDecoder.of(config, trie.num_levels, trie.num_codes)

    def encode(
        self,
        looked_up: Mapping[str, JaggedTensor],
        position_key_T: Tensor | None,
        *,
        trains_tables: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """What is known after each position, float [T, D], and int64 [B + 1] offsets.

        ``position_key_T`` (int64) seeds the dropout; None switches it off. Frozen
        tables get no gradient, and so no update and no all-to-all backward.
        """
        offsets_B1 = looked_up["item"].offsets().long()
        input_TD = self.input_sum(looked_up)
        if not trains_tables:
            input_TD = input_TD.detach()
        return self.backbone(input_TD, offsets_B1, position_key_T), offsets_B1

    def encode_last(self, looked_up: Mapping[str, JaggedTensor]) -> Tensor:
        """float [B, D]: what is known after each whole history, without dropout."""
        hidden_TD, offsets_B1 = self.encode(looked_up, None)
        return hidden_TD[offsets_B1[1:] - 1]

    def forward(
        self, looked_up: Mapping[str, JaggedTensor], batch: LearningBatch
    ) -> StepOutput:
        """What the batch makes of log p(code_sl | codes_s<l, context_s) at its targets.

        With p over the codes that the trie allows; in nats. Pretraining's batches make
        a cross-entropy of it, post-training's a policy loss.
        """
        key_T = batch.position_key_T if self.training else None
        hidden_TD, _ = self.encode(looked_up, key_T, trains_tables=batch.trains_tables)
        logprob_SL = item_logprob(
            self.decoder,
            self.trie,
            hidden_TD,
            batch.target_context_S,
            batch.target_item_S,
        )
        return batch.output(logprob_SL, len(hidden_TD))


class Generator(nn.Module):
    """Decoder-only model over a KeyedJaggedTensor. Knows nothing of sharding."""

    def __init__(
        self,
        *,
        config: GeneratorConfig,
        trie: PrefixTrie,
        num_event_types: int,
        table_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.tables = build_tables(
            num_items=trie.num_items,
            num_levels=trie.num_levels,
            num_codes=trie.num_codes,
            num_gap_buckets=config.num_gap_buckets,
            num_event_types=num_event_types,
            num_value_buckets=config.num_value_buckets,
            dim=config.dim,
            device=table_device,
        )
        self.tower = Tower(config=config, trie=trie)

    def forward(self, batch: LearningBatch) -> tuple[Tensor, StepOutput]:
        """The loss to differentiate and its detached parts. See ``Tower.forward``.

        Where the tables are sharded, the look-up is an all-to-all of all ranks.
        """
        output = self.tower(self.tables(batch.features), batch)
        return output.loss, output._replace(loss=output.loss.detach())

    def encode_last(self, features: KeyedJaggedTensor) -> Tensor:
        """float [B, D]: what is known of each user after the whole history.

        Without dropout. The same communication as ``forward``.
        """
        return self.tower.encode_last(self.tables(features))
