"""Balanced residual k-means: item embeddings -> a codebook and L codes an item.

Shape letters: N items, n items of a chunk, S sampled items, L levels, K codes a level,
k centroids trained at a level (k <= K), M candidate codes an item, D width.
"""

import math

import faiss
import numpy as np
import scipy.sparse

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.item_tokens.codebook import (
    Codebook,
    check_finite,
    check_room,
    cost_from,
)
from sgrec_torchrec.item_tokens.seats import (
    CHUNK_ROWS,
    prefix_ids,
    seat_by_choice,
    seat_within_parents,
    seats_below,
)
from sgrec_torchrec.schema import Float32Array, Int32Array, Int64Array

CROWDING = 1.5
"""No code of a level holds more than this times N / k items."""
ITEMS_PER_CENTROID = 4
"""A smaller catalogue trains fewer centroids than codes, or no two items share one."""
SAMPLE_PER_CENTROID = 256
"""Items that k-means sees per centroid (faiss default): more change little."""
NUM_CHOICES = 8
"""Nearest codes an item may ask for before it is placed one by one."""
BALANCED_ITERATIONS = 5
"""Rounds of capped assignment and new means after plain k-means."""


def quantize(
    embedding_ND: Float32Array,
    *,
    num_levels: int,
    num_codes: int,
    num_iterations: int,
    seed: int,
) -> tuple[Codebook, Int32Array]:
    """Fit the codebook and give every item L codes; last-level collisions remain.

    Residual quantisation: level l quantises what levels before it left over, with one
    set of centroids for all parents. At each level plain k-means (faiss) on a sample is
    followed by rounds under a cap, so that no code holds more than ``CROWDING`` N / k
    items; then, except at the last level, prefixes are cut to the K^(L-1-l) items for
    which there are codes below. ``codebook.resolve_collisions`` does the last level.

    Args:
        embedding_ND: float32, may be a read-only memory map. Zero rows and equal rows
            are fine.
        num_levels: L.
        num_codes: K. With N < ``ITEMS_PER_CENTROID`` K only N / that many are trained.
        num_iterations: of plain k-means, per level.
        seed: of sampling and initial centroids.

    Returns:
        The codebook, and codes_NL int32 in [0, K). Equal inputs and equal thread count
        give equal codes. k-means costs do not grow with N (sample of 256 K); one
        assignment pass a level costs N K D multiply-adds, reads the embeddings in
        chunks and holds N M candidates: 1e8 items at K = 1024 need 6.4 GB beside the
        embeddings (memory-mapped) and 4e13 multiply-adds a level.

    Raises:
        ValueError: a value is not finite, or N > K^L.
    """
    num_items, dim = embedding_ND.shape
    check_room(num_items, num_levels, num_codes)
    check_finite(embedding_ND)
    k = num_centroids(num_items, num_levels, num_codes)
    codes_NL = np.zeros((num_items, num_levels), dtype=np.int32)
    empty = np.zeros((0, dim), dtype=np.float32)
    centroids: list[Float32Array] = [empty] * num_levels
    generator = np.random.default_rng(seed)
    sample_S = _draw_sample(num_items, SAMPLE_PER_CENTROID * k, generator)
    levels = progress(range(num_levels), description="residual k-means", unit="level")
    for level in levels:
        book = Codebook(centroids=tuple(centroids), num_codes=num_codes)
        residual_SD = embedding_ND[sample_S] - book.decode(codes_NL[sample_S, :level])
        centroids[level] = _fit_level(residual_SD, k, num_iterations, seed + level)
        book = Codebook(centroids=tuple(centroids), num_codes=num_codes)
        codes_NL[:, level] = _assign(book, embedding_ND, codes_NL, level)
    return Codebook(centroids=tuple(centroids), num_codes=num_codes), codes_NL


def num_centroids(num_items: int, num_levels: int, num_codes: int) -> int:
    """Centroids to train a level: K, less for a small catalogue, but k^L >= N.

    >>> num_centroids(10_000, 3, 256), num_centroids(100, 3, 256)
    (256, 25)
    """
    k = max(1, math.ceil(num_items / ITEMS_PER_CENTROID))
    while k**num_levels < num_items:
        k += 1
    return min(k, num_codes)


def reconstruction_error(
    codebook: Codebook, embedding_ND: Float32Array, codes_NL: Int32Array
) -> float:
    """Mean squared error over mean squared norm: 0 exact, 1 as good as zeros."""
    error = norm = 0.0
    for start in range(0, len(codes_NL), CHUNK_ROWS):
        part_nD = embedding_ND[start : start + CHUNK_ROWS]
        left_nD = part_nD - codebook.decode(codes_NL[start : start + CHUNK_ROWS])
        error += float(np.square(left_nD, dtype=np.float64).sum())
        norm += float(np.square(part_nD, dtype=np.float64).sum())
    return error / norm if norm else 0.0


def _draw_sample(
    num_items: int, size: int, generator: np.random.Generator
) -> Int64Array:
    if num_items <= size:
        return np.arange(num_items)
    # Sorted, so that a memory-mapped embedding is read forward.
    return np.sort(generator.choice(num_items, size, replace=False))


def _fit_level(
    residual_SD: Float32Array, k: int, num_iterations: int, seed: int
) -> Float32Array:
    """Plain k-means, then rounds under the cap: [k, D] float32.

    Plain k-means sees equal rows once, or many centroids would start at one point;
    with fewer distinct rows than k, centroids repeat and the cap shares out the items.
    """
    residual_SD = np.ascontiguousarray(residual_SD, dtype=np.float32)
    num_sampled, dim = residual_SD.shape
    distinct_sD = np.unique(residual_SD, axis=0)
    kmeans = faiss.Kmeans(
        dim,
        min(k, len(distinct_sD)),
        niter=num_iterations,
        seed=seed,
        # One item may stand alone: no warning for a small catalogue.
        min_points_per_centroid=1,
        max_points_per_centroid=max(SAMPLE_PER_CENTROID, num_sampled),
    )
    kmeans.train(distinct_sD)
    centroid_kD = np.resize(np.asarray(kmeans.centroids, dtype=np.float32), (k, dim))
    for _ in range(BALANCED_ITERATIONS):
        cost_Sm, choice_Sm = _nearest(residual_SD, centroid_kD)
        code_S = seat_by_choice(choice_Sm, cost_Sm, _cap(num_sampled, k), k)
        seated = np.flatnonzero(code_S >= 0)
        members = scipy.sparse.csr_array(
            (np.ones(len(seated), np.float32), (code_S[seated], seated)),
            shape=(k, num_sampled),
        )
        size_k = np.bincount(code_S[seated], minlength=k)
        used = size_k > 0
        centroid_kD[used] = (members @ residual_SD)[used] / size_k[used, None]
    return centroid_kD


def _assign(
    codebook: Codebook, embedding_ND: Float32Array, codes_NL: Int32Array, level: int
) -> Int32Array:
    """Codes of one level for all items, under the cap and the room of each prefix."""
    num_items = len(codes_NL)
    centroid_kD = codebook.centroids[level]
    k = len(centroid_kD)
    num_choices = min(NUM_CHOICES, k)
    choice_NM = np.empty((num_items, num_choices), dtype=np.int32)
    cost_NM = np.empty((num_items, num_choices), dtype=np.float32)
    for start in range(0, num_items, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        residual_nD = embedding_ND[rows] - codebook.decode(codes_NL[rows, :level])
        cost_NM[rows], choice_NM[rows] = _nearest(residual_nD, centroid_kD)
    cap = _cap(num_items, k)
    code_N = seat_by_choice(choice_NM, cost_NM, cap, k)
    fit_N = _fit_of(code_N, choice_NM, cost_NM)
    level_cost = cost_from(codebook, embedding_ND)

    def cost_of(items: Int64Array) -> Float32Array:
        return level_cost(level, items, codes_NL[items])

    def cost_of_left(items: Int64Array) -> Float32Array:
        return cost_of(left[items])

    left = np.flatnonzero(code_N < 0)
    if len(left):
        code_N[left] = seat_within_parents(
            np.zeros(len(left), dtype=np.int64),
            choice_NM[left, 0],
            cost_NM[left, 0],
            cap,
            codebook.num_codes,
            cost_of_left,
            code_N[code_N >= 0].astype(np.int64),
        )
    levels_below = codebook.num_levels - 1 - level
    if levels_below:
        parent_N = prefix_ids(codes_NL[:, :level], codebook.num_codes)
        seats = seats_below(codebook.num_codes, levels_below)
        code_N = seat_within_parents(
            parent_N, code_N, fit_N, seats, codebook.num_codes, cost_of
        )
    return code_N


def _nearest(
    residual_nD: Float32Array, centroid_kD: Float32Array
) -> tuple[Float32Array, Int32Array]:
    """The nearest centroids, best first: squared distances [n, M] and codes [n, M]."""
    cost_nM, choice_nM = faiss.knn(
        np.ascontiguousarray(residual_nD, dtype=np.float32),
        centroid_kD,
        min(NUM_CHOICES, len(centroid_kD)),
    )
    return cost_nM, choice_nM.astype(np.int32)


def _fit_of(
    code_N: Int32Array, choice_NM: Int32Array, cost_NM: Float32Array
) -> Float32Array:
    """Cost of each item's code; the worst of its choices where it got none of them."""
    got_NM = choice_NM == code_N[:, None]
    cost_N = np.where(got_NM, cost_NM, -np.inf).max(axis=1)
    return np.where(got_NM.any(axis=1), cost_N, cost_NM[:, -1]).astype(np.float32)


def _cap(num_items: int, k: int) -> int:
    return math.ceil(CROWDING * num_items / k)
