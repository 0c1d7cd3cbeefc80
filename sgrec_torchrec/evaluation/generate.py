"""A sharded generator over evaluation rows: the best items of each row.

Reads the model where it was trained and the rows of a split; writes top-k lists that
``ranking`` turns into figures.

Letters: E rows, B rows of a batch, W beams, M prior candidates, H seen items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import Ranks, all_gather_rows
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.generator.prior import Prior
from sgrec_torchrec.item_graph.graph import ItemGraph, histories
from sgrec_torchrec.item_graph.row_order import keep_heaviest, place_in_row, rows_of
from sgrec_torchrec.logs.stream import EvalBatch, eval_batches
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Int32Array,
    ItemTokens,
    SplitLog,
)

PRIOR_CANDIDATES = 500
"""Items with the largest graph score that take part in the mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranker:
    """A generator and what it needs to rank the rows of one split."""

    dmp: DistributedModelParallel
    split: SplitLog
    tokens: ItemTokens
    graph: ItemGraph
    config: RunConfig
    ranks: Ranks

    def top_items(
        self, rows: EvalRows, prior_weight: float
    ) -> tuple[Int32Array, Float32Array]:
        """The beam's items and scores of each row, on every rank.

        Rows are shared out over the ranks; looking up tables and gathering the lists
        communicate, so all ranks call together.

        Args:
            rows: of ``split``.
            prior_weight: w of ``generator.prior``; 0 leaves the graph out.

        Returns:
            int32 [E, beam_width], best first, -1 beyond the last item; float32
            log-probabilities of the same shape, -inf there.

        Raises:
            ValueError: if there are no rows.
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
        found = [
            self._search(batch, rows, prior_weight)
            for batch in progress(
                batches, description="beam", total=total, unit="batch"
            )
        ]
        row_E, item_EW, score_EW = (
            all_gather_rows(torch.cat(parts)).cpu().numpy()
            for parts in zip(*found, strict=True)
        )
        is_real = row_E >= 0
        order = np.argsort(row_E[is_real])
        return (
            item_EW[is_real][order].astype(np.int32),
            score_EW[is_real][order].astype(np.float32),
        )

    @torch.no_grad()
    def _search(
        self, batch: EvalBatch, rows: EvalRows, prior_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = batch.to(self.ranks.device)
        generator: Generator = self.dmp.module
        rollout = beam_search(
            generator.tower.decoder,
            generator.tower.trie,
            generator.encode_last(batch.features),
            self.config.evaluation.beam_width,
            seen_item_BH=_padded(batch) if self.config.log.filter_seen else None,
            prior=self._prior(batch, rows, prior_weight) if prior_weight else None,
        )
        return batch.row_B, rollout.item_BG, rollout.key_BG

    def _prior(self, batch: EvalBatch, rows: EvalRows, weight: float) -> Prior:
        """The graph's next-item distribution, cut to its heaviest candidates."""
        asked = rows.take(batch.row_B.clamp(min=0).cpu().numpy())
        scores = self.graph.score(*histories(self.split.sequences, asked))
        total_B = np.asarray(scores.sum(axis=1)).ravel()
        kept = keep_heaviest(scores, PRIOR_CANDIDATES)
        row_E = rows_of(kept.indptr)
        place_E = place_in_row(row_E, len(asked))
        width = int(place_E.max(initial=0)) + 1
        item_BM = np.full((len(asked), width), -1, dtype=np.int64)
        mass_BM = np.zeros((len(asked), width), dtype=np.float32)
        item_BM[row_E, place_E] = kept.indices
        mass_BM[row_E, place_E] = kept.data / total_B[row_E]
        device = self.ranks.device
        return Prior(
            item_BM=torch.from_numpy(item_BM).to(device),
            probability_BM=torch.from_numpy(mass_BM).to(device),
            weight=weight,
        )


def _padded(batch: EvalBatch) -> Tensor:
    """Seen items as int64 [B, H], padded with -1."""
    length_B = batch.seen_offsets_B1.diff()
    row_P = torch.arange(len(length_B), device=length_B.device).repeat_interleave(
        length_B, output_size=len(batch.seen_items_P)
    )
    place_P = torch.arange(len(row_P), device=row_P.device)
    place_P = place_P - batch.seen_offsets_B1[row_P]
    width = int(length_B.max()) if len(length_B) else 0
    seen_BH = batch.seen_items_P.new_full((len(length_B), width), -1)
    seen_BH[row_P, place_P] = batch.seen_items_P
    return seen_BH
