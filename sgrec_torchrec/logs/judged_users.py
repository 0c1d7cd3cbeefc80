"""Which users the judge learns from, and what names the history that it saw.

The judge's weak labels come from users whose events post-training never asks for:
else it would have read the answers that it is to judge.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.hashing import LABEL_USER, hash64, uniform
from sgrec_torchrec.schema import Int64Array, SplitLog

LABEL_SHARE = 0.2
"""Of the users, for the judge's labels; post-training has the others."""


def is_label_user(
    user_ids: Sequence[str], seed: int, share: float = LABEL_SHARE
) -> npt.NDArray[np.bool_]:
    """bool [U]: does the judge learn from this user (and post-training never)?

    By the user's id alone: new users do not move the others. ``share`` in [0, 1].
    """
    drawn = hash64(seed, LABEL_USER, id_hashes(user_ids))
    chosen: npt.NDArray[np.bool_] = uniform(drawn) < share
    return chosen


def id_hash(text: str) -> int:
    """A signed 64-bit hash of a stable id: BLAKE2b of its UTF-8 bytes."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def id_hashes(ids: Iterable[str]) -> Int64Array:
    """``id_hash`` of each, int64."""
    return np.fromiter(map(id_hash, ids), dtype=np.int64)


def history_hash(item_ids: Sequence[str]) -> int:
    """A signed 64-bit name of a history, oldest item first: its ids, in order."""
    return id_hash("\x1f".join(item_ids))


def prefix_hash(split: SplitLog, user: int, as_of: int) -> int:
    """``history_hash`` of the user's first ``as_of`` events."""
    first = int(split.sequences.offsets_U1[user])
    items = split.sequences.items_R[first : first + as_of]
    return history_hash(taken(split.catalogue.item_ids, items))
