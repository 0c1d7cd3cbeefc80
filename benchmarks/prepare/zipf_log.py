"""A generated log of any size, as a platform would have it: skewed, and it follows.

Items are drawn by Zipf's law; 35 % of the events stay near the item before. A user has
20 events on average, of gamma-distributed number. The catalogue has titles of three
words and vectors around 2,000 centres. Written in time order, in parts.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EVENTS_PER_USER = 20
EVENTS_PER_ITEM = 10
FOLLOWING = 0.35
DIM, NUM_CENTRES = 64, 2_000
FIRST_SECOND, DAYS = 1_600_000_000, 80
PART_ROWS = 4_000_000
LOG_SCHEMA = pa.schema(
    [(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")]
)
ITEM_SCHEMA = pa.schema(
    [
        ("item_id", pa.int64()),
        ("title", pa.string()),
        ("embedding", pa.list_(pa.float32(), DIM)),
    ]
)


def write_zipf_log(folder: Path, num_events: int, seed: int = 0) -> tuple[int, int]:
    """``log.parquet`` and ``items.parquet``; returns how many events and items."""
    noise = np.random.default_rng(seed)
    num_items = max(100, num_events // EVENTS_PER_ITEM)
    item_of_rank = noise.permutation(num_items).astype(np.int32)
    user_R, rank_R, time_R = _events(noise, num_events, num_items)
    order = np.argsort(time_R, kind="stable")
    with pq.ParquetWriter(
        folder / "log.parquet", LOG_SCHEMA, compression="zstd"
    ) as file:
        for start in range(0, len(order), PART_ROWS):
            part = order[start : start + PART_ROWS]
            columns = (user_R[part], item_of_rank[rank_R[part]], time_R[part])
            arrays = [pa.array(column.astype(np.int64)) for column in columns]
            file.write_table(pa.table(arrays, schema=LOG_SCHEMA))
    _write_items(folder / "items.parquet", noise, item_of_rank)
    return len(order), num_items


def _events(
    noise: np.random.Generator, num_events: int, num_items: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, rank of the item and second of each event, by user."""
    activity_U = noise.gamma(1.5, 1.0, max(1, num_events // EVENTS_PER_USER))
    mean_U = activity_U / activity_U.mean() * (EVENTS_PER_USER - 1)
    length_U = np.maximum(3, noise.poisson(mean_U)).astype(np.int64)
    length_U = length_U[np.cumsum(length_U) <= num_events]
    user_R = np.repeat(np.arange(len(length_U), dtype=np.int32), length_U)
    rank_R = np.exp(noise.random(len(user_R)) * np.log(num_items)) - 1
    rank_R = rank_R.astype(np.int32)
    follows = 1 + np.flatnonzero(noise.random(len(user_R) - 1) < FOLLOWING)
    near = noise.integers(-3, 4, len(follows)).astype(np.int32)
    rank_R[follows] = rank_R[follows - 1] + near
    rank_R = np.clip(rank_R, 0, num_items - 1)
    first_U = noise.integers(FIRST_SECOND, FIRST_SECOND + DAYS * 86_400, len(length_U))
    step_U = noise.integers(60, 7_200, len(length_U))
    place_R = np.arange(len(user_R)) - np.repeat(
        np.cumsum(length_U) - length_U, length_U
    )
    time_R = np.repeat(first_U, length_U) + place_R * np.repeat(step_U, length_U)
    return user_R, rank_R, time_R


def _write_items(
    path: Path, noise: np.random.Generator, item_of_rank: np.ndarray
) -> None:
    centre_CD = noise.standard_normal((NUM_CENTRES, DIM)).astype(np.float32)
    rank_of_item = np.argsort(item_of_rank)
    with pq.ParquetWriter(path, ITEM_SCHEMA, compression="zstd") as file:
        for start in range(0, len(item_of_rank), PART_ROWS // DIM):
            items = np.arange(start, min(start + PART_ROWS // DIM, len(item_of_rank)))
            centre = (rank_of_item[items] // 50) % NUM_CENTRES
            near = 0.5 * noise.standard_normal((len(items), DIM))
            vector = (centre_CD[centre] + near).astype(np.float32)
            titles = [
                f"brand{group % 997} model{item % 10_007} size{item % 13}"
                for item, group in zip(items.tolist(), centre.tolist(), strict=True)
            ]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector.ravel()), DIM)
            arrays = [pa.array(items), pa.array(titles), vectors]
            file.write_table(pa.table(arrays, schema=ITEM_SCHEMA))
