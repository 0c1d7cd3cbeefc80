"""A conflict found while sorting -> the rows of the input that disagree, in words.

Sorted records carry no row numbers: the input is read again, only to fail well.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sgrec_torchrec.reward_table.ids import Ids, Texts, one
from sgrec_torchrec.reward_table.judged_files import JudgedBatch
from sgrec_torchrec.reward_table.rows import ConflictError


def describe_conflict(
    error: ConflictError,
    batches: Iterable[JudgedBatch],
    user_texts: Ids | None,
    item_ids: Ids | range,
) -> str:
    """Name the first row that disagrees with an earlier one, both values and the mend.

    Args:
        user_texts: by user number, where users are texts.
        item_ids: by item number.
    """
    user = error.user if user_texts is None else one(user_texts, error.user)
    item = None if error.item is None else one(item_ids, error.item)
    before: tuple[str, str] | None = None
    for batch in batches:
        is_it = _equals(batch.users, user)
        if item is not None:
            is_it &= _equals(batch.items, item)
        for at in np.flatnonzero(is_it).tolist():
            where = f"{batch.path}, row {batch.first_row + at}"
            said = _prefix(batch, at) if item is None else _scores(batch, at)
            if before is None:
                before = (where, said)
            elif said != before[1]:
                return f"{where}: {_words(user, item, said, before)}"
    raise AssertionError("the input holds no such conflict")


def _words(
    user: int | str, item: int | str | None, said: str, before: tuple[str, str]
) -> str:
    where, said_before = before
    if item is None:
        return (
            f"user {user!r} was judged at {said}, but at {said_before} in {where}; a "
            "user has one prefix: keep one, or append the other as a segment"
        )
    return (
        f"user {user!r}, item {item!r} has {said}, but {said_before} in {where}; drop "
        "one of them, or choose --on-conflict last or mean"
    )


def _scores(batch: JudgedBatch, at: int) -> str:
    reward, *aspects = (f"{score:.9g}" for score in batch.scores[at])
    told = f"reward {reward}"
    return f"{told} and aspects {', '.join(aspects)}" if aspects else told


def _prefix(batch: JudgedBatch, at: int) -> str:
    assert batch.as_of is not None
    told = f"as_of {batch.as_of[at]}"
    if batch.history_hash is not None:
        told += f", history_hash {batch.history_hash[at]}"
    return told


def _equals(ids: Ids, wanted: int | str) -> npt.NDArray[np.bool_]:
    if isinstance(ids, Texts):
        same = pc.equal(ids.to_arrow(), pa.scalar(wanted, pa.large_string()))
        is_same: npt.NDArray[np.bool_] = same.to_numpy(zero_copy_only=False)
        return is_same
    return np.asarray(ids == wanted)
