"""Evidence of a history (candidates, features, probabilities) against sparse products.

Both sides answer the same question for a batch of histories over random relations: our
kernel walks the neighbours of the history once a pass, for all features together; the
peer is what a user writes with scipy, one product of decayed history weights with each
relation for each decay, and a lookup at the candidates. Sums must be equal before
anything is timed. Maxima, votes and repeats come on top on our side only.

Usage: python benchmarks/bench_evidence.py [--items 100000] [--rows 512] [--json PATH]
"""

import argparse
from pathlib import Path
from statistics import median

import numpy as np
import scipy.sparse as sp
import torch
from reporting import Row, relative_spread, report, time_interleaved

from sgrec_torchrec.config import EvidenceConfig
from sgrec_torchrec.evidence.gather import (
    DECAYS,
    PER_RELATION,
    Evidence,
    Histories,
    gather,
    num_features,
)
from sgrec_torchrec.evidence.relations import RELATIONS, Relations
from sgrec_torchrec.evidence.scorer import EvidenceScorer

NUM_NEIGHBOURS = 100
HISTORY = 150
CONFIG = EvidenceConfig()


def random_relations(num_items: int, seed: int) -> Relations:
    """Every item has NUM_NEIGHBOURS by each relation, popular ones more often."""
    noise = np.random.default_rng(seed)
    num_rows = len(RELATIONS) * num_items
    shape = (num_rows, NUM_NEIGHBOURS)
    neighbours = np.sort((num_items * noise.random(shape) ** 2).astype(np.int32))
    weights = noise.exponential(0.1, neighbours.size).astype(np.float32)
    popularity_N = noise.zipf(1.5, num_items).clip(max=100_000)
    return Relations(
        indptr_R1=np.arange(num_rows + 1) * NUM_NEIGHBOURS,
        neighbours_E=neighbours.reshape(-1),
        weights_E=weights,
        popularity_N=popularity_N,
        recent_N=popularity_N // 5,
    )


def random_histories(num_items: int, num_rows: int, seed: int) -> Histories:
    """Histories of HISTORY events, each a basket of its own."""
    noise = np.random.default_rng(seed)
    return Histories(
        indptr_E1=np.arange(num_rows + 1) * HISTORY,
        items_H=noise.integers(0, num_items, num_rows * HISTORY, dtype=np.int32),
        baskets_back_H=np.tile(np.arange(HISTORY, dtype=np.int32)[::-1], num_rows),
    )


def product_sums(
    relations: list[sp.csr_matrix], histories: Histories, evidence: Evidence
) -> np.ndarray:
    """The decayed sums by sparse products: float32 [E, M, R, decays]."""
    num_rows, num_places = evidence.item_EM.shape
    newest = histories.baskets_back_H < CONFIG.score_history
    row_H = np.repeat(np.arange(num_rows), HISTORY)[newest]
    items_H, back_H = histories.items_H[newest], histories.baskets_back_H[newest]
    place_row = np.repeat(np.arange(num_rows), num_places)
    place_item = np.maximum(evidence.item_EM, 0).reshape(-1)
    shape = (num_rows, relations[0].shape[0])
    sums = [
        sp.csr_matrix((decay**back_H, (row_H, items_H)), shape=shape) @ relation
        for relation in relations
        for decay in DECAYS
    ]
    looked_up = [np.asarray(one[place_row, place_item]).ravel() for one in sums]
    found = np.stack(looked_up, axis=-1).astype(np.float32)
    return found.reshape(num_rows, num_places, len(relations), len(DECAYS))


def check_equal(evidence: Evidence, sums_EMRd: np.ndarray) -> None:
    """Raise unless our decayed sums are the peer's."""
    shape = (*evidence.item_EM.shape, len(RELATIONS), PER_RELATION)
    by_relation = evidence.features_EMF[..., : len(RELATIONS) * PER_RELATION]
    ours = by_relation.reshape(shape)[..., 2:]
    is_real = evidence.item_EM >= 0
    np.testing.assert_allclose(ours[is_real], sums_EMRd[is_real], rtol=1e-3, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    relations = random_relations(args.items, seed=0)
    histories = random_histories(args.items, args.rows, seed=1)
    stacked = sp.csr_matrix(
        (relations.weights_E, relations.neighbours_E, relations.indptr_R1),
        shape=(len(RELATIONS) * args.items, args.items),
    )
    apart = [
        stacked[nth * args.items : (nth + 1) * args.items]
        for nth in range(len(RELATIONS))
    ]
    evidence = gather(relations, histories, CONFIG, filter_seen=True)
    check_equal(evidence, product_sums(apart, histories, evidence))
    scorer = EvidenceScorer(num_features(len(RELATIONS)), CONFIG.hidden)

    def ours() -> object:
        found = gather(relations, histories, CONFIG, filter_seen=True)
        return scorer.probability(found)

    ours_s, peer_s = time_interleaved(
        ours, lambda: product_sums(apart, histories, evidence)
    )
    row = Row(
        name=f"evidence, history {HISTORY}, {args.items} items",
        unit="ms a user",
        ours=1e3 * median(ours_s) / args.rows,
        peer=1e3 * median(peer_s) / args.rows,
        peer_name="scipy products",
        ratio=median(peer_s) / median(ours_s),
        spread=relative_spread(ours_s),
    )
    report([row], args.json)


if __name__ == "__main__":
    main()
