"""Interaction logs to co-visitation: how often item j stands near item i.

C[i, j] sums, over pairs of events of one user at most ``max_distance`` places apart,
``forward_weight`` / distance^x where j comes after i and ``backward_weight`` /
distance^x where it comes before, with x the ``distance_exponent``. Events of one basket
(same user, same timestamp) have no order in time, only that of a seeded shuffle: such a
pair weighs the mean of the two weights both ways, with the distance the shuffle gave.
In a log of single-event baskets the defaults are the plain formula of ANCHORS.md.

Scale: a log of R events has at most 2 R max_distance pairs. They are counted in
passes over ranges of source items, each holding at most ``max_pairs`` pairs (28 bytes
each at the peak, while they are sorted), so memory does not grow with the log; each
pass reads the log once, front to back, in chunks of whole users, so its columns may be
memory-mapped. 1e9 events at distance 5 and 2e8 pairs a pass (6 GB) make 50 passes over
12 GB. An item that alone exceeds ``max_pairs`` gets a pass of its own.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sgrec_torchrec.config import GraphConfig, check_choice
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.item_graph.row_order import keep_heaviest, rows_of
from sgrec_torchrec.schema import Float64Array, Int32Array, Int64Array, Sequences

MAX_PAIRS = 20_000_000
CHUNK_EVENTS = 4_000_000


def fit_ends(sequences: Sequences, fit_on: str) -> Int32Array:
    """Number of each user's events that may be learned from, int32 [U].

    Raises:
        ValueError: unless ``fit_on`` is "train" or "train+valid".
    """
    check_choice("fit_on", fit_on, ("train", "train+valid"))
    return sequences.train_end_U if fit_on == "train" else sequences.valid_end_U


def popularity(sequences: Sequences, end_U: Int32Array) -> Int64Array:
    """Events of each item among the first ``end_U[u]`` of each user, int64 [N]."""
    count_N = np.zeros(sequences.num_items, dtype=np.int64)
    for start, stop, end_row in event_chunks(sequences, end_U):
        learned = np.arange(start, stop) < end_row
        items = sequences.items_R[start:stop][learned]
        count_N += np.bincount(items, minlength=sequences.num_items)
    return count_N


def event_chunks(
    sequences: Sequences, end_U: Int32Array
) -> Iterator[tuple[int, int, Int64Array]]:
    """Yield (start, stop, end_row) of whole users, about CHUNK_EVENTS events each.

    ``end_row`` int64 [stop - start] is, for each event, the row just past its user's
    last event that may be learned from.
    """
    offsets = sequences.offsets_U1
    user = 0
    while user < sequences.num_users:
        limit = offsets[user] + CHUNK_EVENTS
        after = int(np.searchsorted(offsets, limit, side="right")) - 1
        after = max(after, user + 1)
        end_row = offsets[user:after] + end_U[user:after]
        lengths = np.diff(offsets[user : after + 1])
        yield int(offsets[user]), int(offsets[after]), np.repeat(end_row, lengths)
        user = after


def item_ranges(pairs_N: Int64Array, max_pairs: int) -> list[tuple[int, int]]:
    """Cut [0, N) into ranges of at most ``max_pairs`` pairs, or of a single item."""
    total = np.cumsum(pairs_N)
    ranges, low, done = [], 0, 0
    while low < len(pairs_N):
        high = int(np.searchsorted(total, done + max_pairs, side="right"))
        high = max(high, low + 1)
        ranges.append((low, high))
        low, done = high, int(total[high - 1])
    return ranges


def covisitation(
    sequences: Sequences,
    config: GraphConfig,
    end_U: Int32Array,
    max_pairs: int = MAX_PAIRS,
) -> Iterator[tuple[int, int, sp.csr_matrix]]:
    """Yield (low, high, counts): rows low to high of C, float64 CSR [high - low, N].

    Sums run in the order of the log, so the result is the same for every
    ``max_pairs``. Ranks do not communicate.
    """
    bound_N = 2 * config.max_distance * popularity(sequences, end_U)
    for low, high in progress(
        item_ranges(bound_N, max_pairs), description="co-visitation", unit="range"
    ):
        parts = [
            part
            for chunk in event_chunks(sequences, end_U)
            for part in _pairs(sequences, chunk, config, low, high)
        ]
        yield low, high, _count(parts, low, high, sequences.num_items)


def covisitation_edges(
    sequences: Sequences,
    config: GraphConfig,
    end_U: Int32Array,
    popularity_N: Int64Array,
) -> sp.csr_matrix:
    """The damped co-visits, cut to ``max_neighbours`` a row: float64 CSR [N, N]."""
    damping_N = (1.0 + popularity_N) ** -config.row_exponent
    column_N = (1.0 + popularity_N) ** -config.column_exponent
    blocks = []
    for low, high, counts in covisitation(sequences, config, end_U):
        row = rows_of(counts.indptr)
        counts.data = counts.data * damping_N[low:high][row]
        counts.data = counts.data * column_N[counts.indices]
        blocks.append(keep_heaviest(counts, config.max_neighbours))
    edges: sp.csr_matrix = sp.vstack(blocks, format="csr")
    return edges


def _pairs(
    sequences: Sequences,
    chunk: tuple[int, int, Int64Array],
    config: GraphConfig,
    low: int,
    high: int,
) -> Iterator[tuple[Int32Array, Int32Array, Float64Array]]:
    """Source, target and weight of the chunk's pairs with a source in [low, high)."""
    start, stop, end_row = chunk
    items = sequences.items_R[start:stop]
    times = sequences.timestamps_R[start:stop]
    row = np.arange(start, stop)
    forth, back = config.forward_weight, config.backward_weight
    in_range = (items >= low) & (items < high)
    for distance in range(1, min(config.max_distance, len(items) - 1) + 1):
        within = row[:-distance] + distance < end_row[:-distance]
        earlier, later = items[:-distance], items[distance:]
        is_basket = times[:-distance] == times[distance:]
        for source, target, here, weight in (
            (earlier, later, in_range[:-distance], forth),
            (later, earlier, in_range[distance:], back),
        ):
            kept = np.flatnonzero(within & here)
            weights = np.where(is_basket[kept], (forth + back) / 2.0, weight)
            yield (
                source[kept],
                target[kept],
                weights / distance**config.distance_exponent,
            )


def _count(
    parts: list[tuple[Int32Array, Int32Array, Float64Array]],
    low: int,
    high: int,
    num_items: int,
) -> sp.csr_matrix:
    """Sum weights of equal (source, target) into a CSR matrix, columns sorted."""
    if not parts:
        return sp.csr_matrix((high - low, num_items))
    source = np.concatenate([part[0] for part in parts]).astype(np.int64)
    target = np.concatenate([part[1] for part in parts])
    weight = np.concatenate([part[2] for part in parts])
    key = (source - low) * num_items + target
    order = np.argsort(key, kind="stable")
    key, weight = key[order], weight[order]
    first: npt.NDArray[np.intp] = np.flatnonzero(
        np.concatenate([[True], key[1:] != key[:-1]])[: len(key)]
    )
    totals = np.add.reduceat(weight, first) if len(first) else weight
    key = key[first]
    indptr = np.searchsorted(key, np.arange(high - low + 1) * num_items)
    return sp.csr_matrix(
        (totals, key % num_items, indptr), shape=(high - low, num_items)
    )
