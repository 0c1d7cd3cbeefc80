"""The generator: tables, backbone and code decoder, with its pretraining loss.

Letters: T positions, B sequences, X contexts (T or B), S targets, L levels, D width.
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

    def encode_last(self, looked_up: Mapping[str, JaggedTensor]) -> Tensor:
        """float [B, D]: what is known after each whole history, without dropout."""
        input_TD, offsets_B1 = self._inputs(looked_up)
        return self.backbone.ends(input_TD, offsets_B1)

    def forward(
        self, looked_up: Mapping[str, JaggedTensor], batch: LearningBatch
    ) -> StepOutput:
        """What the batch makes of log p(code_sl | codes_s<l, context_s) at its targets.

        With p over the codes that the trie allows; in nats. Pretraining's batches make
        a cross-entropy of it, post-training's a policy loss. Frozen tables get no
        gradient, and so no update and no all-to-all backward.
        """
        input_TD, offsets_B1 = self._inputs(looked_up)
        if not batch.trains_tables:
            input_TD = input_TD.detach()
        if batch.asks_ends:
            context_XD = self.backbone.ends(input_TD, offsets_B1)
        else:
            key_T = batch.position_key_T if self.training else None
            context_XD = self.backbone(input_TD, offsets_B1, key_T)
        logprob_SL = item_logprob(
            self.decoder,
            self.trie,
            context_XD,
            batch.target_context_S,
            batch.target_item_S,
        )
        return batch.output(logprob_SL, len(input_TD))

    def _inputs(self, looked_up: Mapping[str, JaggedTensor]) -> tuple[Tensor, Tensor]:
        """float [T, D], and int64 [B + 1]: where each sequence starts."""
        return self.input_sum(looked_up), looked_up["item"].offsets().long()


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
