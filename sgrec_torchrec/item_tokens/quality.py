"""Item tokens -> a report of how good they are, as numbers.

Shape letters: N items, L levels, K codes a level, E edges, n items asked about.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.item_tokens.behaviour_embedding import SparseGraph
from sgrec_torchrec.item_tokens.codebook import Collisions
from sgrec_torchrec.item_tokens.seats import prefix_ids
from sgrec_torchrec.schema import Int64Array, ItemTokens

NUM_NEIGHBOURS = 10
MAX_ASKED = 100_000
"""Items asked about their neighbours; beyond, a seeded sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuality:
    """Numbers of the quality report. Lists have one entry a level or prefix length."""

    num_items: int
    num_codes: int
    source: str
    collision_rate_before: float
    """Share of items that shared all codes with another one before resolving."""
    moved_share: float
    """Share of items whose code was changed to resolve collisions."""
    codes_used: list[int]
    perplexity: list[float]
    """exp(entropy) of a level's codes: K where all are used alike."""
    largest_bucket: list[int]
    """Most items under one prefix of 1, 2, ... L codes (the last one is 1)."""
    mean_bucket: list[float]
    """Items per prefix that is used."""
    neighbours_sharing: list[float]
    """Share of an item's ten heaviest graph neighbours with the same first 1 .. L-1
    codes."""
    random_sharing: list[float]
    """The same for two items drawn at random."""
    reconstruction_error: float | None
    """Squared error over squared norm of the embedding; None without an embedding."""


def measure_quality(
    tokens: ItemTokens,
    collisions: Collisions,
    graph: SparseGraph | None,
    *,
    source: str,
    reconstruction_error: float | None,
    seed: int = 0,
) -> TokenQuality:
    """All figures of the report; no communication. Time grows with L N log N."""
    codes_NL, num_items = tokens.codes_NL, tokens.num_items
    usage = [np.bincount(codes, minlength=tokens.num_codes) for codes in codes_NL.T]
    lengths = range(1, tokens.num_levels + 1)
    prefixes = [prefix_ids(codes_NL[:, :n], tokens.num_codes) for n in lengths]
    buckets = [np.bincount(prefix) for prefix in prefixes]
    asked, neighbours = top_neighbours(graph, num_items, seed)
    return TokenQuality(
        num_items=num_items,
        num_codes=tokens.num_codes,
        source=source,
        collision_rate_before=collisions.colliding / num_items,
        moved_share=sum(collisions.moved_L) / num_items,
        codes_used=[int((counts > 0).sum()) for counts in usage],
        perplexity=[_perplexity(counts) for counts in usage],
        largest_bucket=[int(counts.max()) for counts in buckets],
        mean_bucket=[num_items / len(counts) for counts in buckets],
        neighbours_sharing=[
            _mean(prefix[asked] == prefix[neighbours]) for prefix in prefixes[:-1]
        ],
        random_sharing=[_pairs_sharing(counts) for counts in buckets[:-1]],
        reconstruction_error=reconstruction_error,
    )


def top_neighbours(
    graph: SparseGraph | None, num_items: int, seed: int
) -> tuple[Int64Array, Int64Array]:
    """Pairs (item, neighbour): up to ten heaviest neighbours of each item asked.

    Self-edges are left out; ties go to the edge that stands first. At most
    ``MAX_ASKED`` items are asked, drawn by ``seed``.
    """
    if graph is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    asked_n = np.arange(num_items)
    if num_items > MAX_ASKED:
        generator = np.random.default_rng(seed)
        asked_n = np.sort(generator.choice(num_items, MAX_ASKED, replace=False))
    start_n = graph.indptr_N1[asked_n]
    size_n = graph.indptr_N1[asked_n + 1] - start_n
    item_e = np.repeat(asked_n, size_n)
    first_e = np.repeat(np.cumsum(size_n) - size_n, size_n)
    edge_e = np.repeat(start_n, size_n) + np.arange(len(item_e)) - first_e
    other_e = graph.neighbours_E[edge_e].astype(np.int64)
    weight_e = graph.weights_E[edge_e]
    kept = other_e != item_e
    item_e, other_e, weight_e = item_e[kept], other_e[kept], weight_e[kept]
    order = np.lexsort((-weight_e, item_e))
    item_e, other_e = item_e[order], other_e[order]
    starts = np.searchsorted(item_e, item_e, side="left")
    near = np.arange(len(item_e)) - starts < NUM_NEIGHBOURS
    return item_e[near], other_e[near]


def quality_as_dict(quality: TokenQuality) -> dict[str, object]:
    """The report's numbers, ready for JSON."""
    return dataclasses.asdict(quality)


def _perplexity(counts_K: Int64Array) -> float:
    share = counts_K[counts_K > 0] / counts_K.sum()
    return float(math.exp(-(share * np.log(share)).sum()))


def _pairs_sharing(counts: Int64Array) -> float:
    """Chance that two distinct items, drawn at random, lie in one bucket."""
    num_items = float(counts.sum())
    if num_items < 2:
        return 0.0
    pairs = (counts.astype(np.float64) * (counts - 1)).sum()
    return float(pairs / (num_items * (num_items - 1)))


def _mean(mask: npt.NDArray[np.bool_]) -> float:
    return float(mask.mean()) if len(mask) else 0.0
