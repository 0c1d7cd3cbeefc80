"""A sharded generator over evaluation rows: the best items of each row.

Reads the model where it was trained and the rows of a split; writes top-k lists that
``ranking`` turns into figures.

Letters: E rows, B rows of a batch, W beams, M prior candidates, H seen items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import Ranks, all_gather_rows
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.distributed.termination import stop_if_told
from sgrec_torchrec.evidence.gather import histories_of
from sgrec_torchrec.evidence.prior import EvidencePrior
from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.generator.prior import Prior
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.logs.stream import EvalBatch, eval_batches, resolved
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Int32Array,
    ItemTokens,
    SplitLog,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopItems:
    """Lists of E rows, best first, -1 beyond the last item.

    ``score_EW`` is the (mixed) log-probability, -inf at the -1.
    """

    item_EW: Int32Array
    score_EW: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """A generator and what it needs to rank the rows of one split."""

    dmp: DistributedModelParallel
    split: SplitLog
    tokens: ItemTokens
    graph: ItemGraph
    evidence: EvidencePrior
    config: RunConfig
    ranks: Ranks

    def top_items(
        self, rows: EvalRows, prior_weights: Sequence[float]
    ) -> list[TopItems]:
        """The beam's items and scores of each row, on every rank, for every weight.

        Histories are encoded and evidence is gathered once, whatever the number of
        weights. Rows are shared out over the ranks; looking up tables and gathering the
        lists communicate, so all ranks call together.

        Args:
            rows: of ``split``.
            prior_weights: w of ``generator.prior``; 0 leaves the evidence out.

        Raises:
            ValueError: if there are no rows.
            ToldError: inside of a loop that was told to end.
        """
        if not len(rows):
            raise ValueError("no rows to rank: every user's history is too short")
        self.dmp.eval()
        settings = self.config.evaluation
        batches = eval_batches(
            self.split.sequences,
            rows,
            self.tokens.codes_NL,
            self.tokens.num_codes,
            self.config.generator,
            batch_size=settings.batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )
        share = -(-len(rows) // self.ranks.world_size)
        total = -(-share // settings.batch_size)
        found = []
        for batch in progress(batches, description="beam", total=total, unit="batch"):
            # All ranks have equally many: the last ones are padded.
            stop_if_told()
            found.append(self._search(batch, rows, prior_weights))
        return [self._gather(list(parts)) for parts in zip(*found, strict=True)]

    def _gather(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> TopItems:
        """All ranks' batches as lists in the order of the rows."""
        row_E, item_EW, score_EW = (
            all_gather_rows(torch.cat(part)).cpu().numpy()
            for part in zip(*parts, strict=True)
        )
        is_real = row_E >= 0
        order = np.argsort(row_E[is_real])
        return TopItems(
            item_EW=item_EW[is_real][order].astype(np.int32),
            score_EW=score_EW[is_real][order].astype(np.float32),
        )

    @torch.no_grad()
    def _search(
        self, batch: EvalBatch, rows: EvalRows, prior_weights: Sequence[float]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        batch = batch.to(self.ranks.device)
        generator: Generator = self.dmp.module
        hidden_BD = generator.encode_last(batch.features)
        seen_item_BH = batch.seen_item_BH() if self.config.log.filter_seen else None
        prior = self._prior(batch, rows) if any(prior_weights) else None
        found = []
        for weight in prior_weights:
            rollout = beam_search(
                generator.tower.decoder,
                generator.tower.trie,
                hidden_BD,
                self.config.evaluation.beam_width,
                seen_item_BH=seen_item_BH,
                prior=replace(prior, weight=weight) if prior and weight else None,
            )
            found.append((batch.row_B, rollout.item_BG, rollout.key_BG))
        return found

    def _prior(self, batch: EvalBatch, rows: EvalRows) -> Prior:
        """The evidence's next-item distribution over its candidates; weight open."""
        asked = rows.take(batch.row_B.clamp(min=0).cpu().numpy())
        max_history = resolved("evidence.max_history", self.config.evidence.max_history)
        histories = histories_of(self.split.sequences, asked.with_history(max_history))
        item_BM, probability_BM = self.evidence.candidates(histories)
        device = self.ranks.device
        return Prior(
            item_BM=torch.from_numpy(item_BM).long().to(device),
            probability_BM=torch.from_numpy(probability_BM).to(device),
            weight=0.0,
        )
