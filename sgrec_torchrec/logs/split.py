"""Canonical log -> train, valid and test: which event is asked, given which history.

Rows of one user at one timestamp are a set (a basket): no history holds an item of its
target's timestamp, and no cut runs through a basket. See ``prepare_split``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.config import LogConfig, check_choice
from sgrec_torchrec.logs.canonical import CanonicalLog, read_canonical
from sgrec_torchrec.logs.ordering import SPLITS, OrderedRows, read_ordered
from sgrec_torchrec.logs.split_store import load_split, write_split
from sgrec_torchrec.schema import EvalRows, Int32Array, Int64Array, Sequences, SplitLog

__all__ = ["load_split", "prepare_split"]

TRAIN_SHARE = 0.8
VALID_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a protocol ends each user's train and valid period, and what it asks.

    ``valid_rows`` and ``test_rows`` are the targets, as indices into the R rows.
    """

    train_end_U: Int32Array
    valid_end_U: Int32Array
    valid_rows: Int64Array
    test_rows: Int64Array
    counts: dict[str, int]


def prepare_split(canonical_dir: Path, config: LogConfig, out_dir: Path) -> SplitLog:
    """Cut a canonical log by ``config.protocol`` and write the prepared folder.

    leave-last-out: of each user with 3 baskets or more, the test target is the last
        event of the last basket, the valid target the last event of the one before
        (after the seeded shuffle inside baskets); other users only train.
    chronological: all rows by time, the first 80 % train, the next 10 % valid; both
        cuts are timestamps. Every event of the valid and test periods is a target,
        its history all earlier events of the user; targets without one are dropped.
    given: by the log's ``split`` column; every valid and test row is a target, also
        without a history.

    A history holds the newest ``config.max_history`` events before the target's
    timestamp. Time and memory grow with the rows: about 60 bytes a row. No ranks
    communicate: one process prepares, the others load.

    Raises:
        FileNotFoundError: where the canonical folder or a file of it is absent.
        ValueError: for a damaged folder, too few users, a protocol that this log
            cannot serve, or one that leaves no target in valid or test.
    """
    check_choice("log.protocol", config.protocol, tuple(PROTOCOLS))
    log = read_canonical(canonical_dir)
    rows = read_ordered(log, seed=config.seed)
    cut = PROTOCOLS[config.protocol](rows, log)
    valid = _eval_rows(rows, cut.valid_rows, config.max_history)
    test = _eval_rows(rows, cut.test_rows, config.max_history)
    for name, targets in (("valid", valid), ("test", test)):
        if not len(targets):
            raise ValueError(
                f"{canonical_dir}: protocol {config.protocol} leaves no target with a "
                f"history in {name}; choose another log.protocol or import more rows"
            )
    sequences = Sequences(
        offsets_U1=rows.offsets_U1,
        items_R=rows.items_R,
        timestamps_R=rows.timestamps_R,
        events_R=rows.events_R,
        values_R=rows.values_R,
        train_end_U=cut.train_end_U,
        valid_end_U=cut.valid_end_U,
        num_items=rows.num_items,
        num_event_types=len(rows.event_types),
        has_clock=log.has_clock,
        has_value=bool(np.isfinite(rows.values_R).any()),
    )
    sequences.validate()
    write_split(
        out_dir,
        log=log,
        config=config,
        sequences=sequences,
        valid=valid,
        test=test,
        user_ids=rows.user_ids,
        event_types=rows.event_types,
        counts=cut.counts,
    )
    return load_split(out_dir)


def _eval_rows(rows: OrderedRows, targets: Int64Array, max_history: int) -> EvalRows:
    user_E = np.searchsorted(rows.offsets_U1, targets, side="right") - 1
    end_E = rows.basket_start_R[targets] - rows.offsets_U1[user_E]
    return EvalRows(
        user_E=user_E,
        history_start_E=np.maximum(end_E - max_history, 0).astype(np.int32),
        history_end_E=end_E.astype(np.int32),
        target_E=rows.items_R[targets],
        target_timestamp_E=rows.timestamps_R[targets],
    )


def _leave_last_out(rows: OrderedRows, log: CanonicalLog) -> Cut:
    first_U, lengths_U = rows.offsets_U1[:-1], np.diff(rows.offsets_U1)
    test_U = rows.offsets_U1[1:] - 1
    test_start_U = rows.basket_start_R[test_U]
    # Of a user with one basket this is another user's row: masked out below.
    valid_U = np.maximum(test_start_U - 1, 0)
    valid_start_U = rows.basket_start_R[valid_U]
    is_asked_U = (test_start_U > first_U) & (valid_start_U > first_U)
    if not is_asked_U.any():
        raise ValueError(
            f"{log.folder}: no user has 3 baskets (events at 3 different timestamps), "
            "which leave-last-out needs: import more rows or another log.protocol"
        )
    end_U = [
        np.where(is_asked_U, start_U - first_U, lengths_U).astype(np.int32)
        for start_U in (valid_start_U, test_start_U)
    ]
    return Cut(
        train_end_U=end_U[0],
        valid_end_U=end_U[1],
        valid_rows=valid_U[is_asked_U],
        test_rows=test_U[is_asked_U],
        counts={"users_train_only": int((~is_asked_U).sum())},
    )


def _chronological(rows: OrderedRows, log: CanonicalLog) -> Cut:
    if not log.has_clock:
        raise ValueError(
            f"{log.folder}: protocol chronological needs a clock, but this log's "
            "timestamps are ordinals; choose leave-last-out or given"
        )
    times_R = rows.timestamps_R
    places = [int(len(times_R) * TRAIN_SHARE)]
    places.append(int(len(times_R) * (TRAIN_SHARE + VALID_SHARE)))
    train_cut, valid_cut = np.partition(times_R, places)[places]
    is_train_R, is_valid_R = times_R < train_cut, times_R < valid_cut
    user_first_R = np.repeat(rows.offsets_U1[:-1], np.diff(rows.offsets_U1))
    has_history_R = rows.basket_start_R > user_first_R
    is_asked_R = ~is_train_R & has_history_R
    return Cut(
        train_end_U=_count_by_user(rows, is_train_R),
        valid_end_U=_count_by_user(rows, is_valid_R),
        valid_rows=np.flatnonzero(is_asked_R & is_valid_R),
        test_rows=np.flatnonzero(is_asked_R & ~is_valid_R),
        counts={
            "targets_dropped_no_history": int((~is_train_R & ~has_history_R).sum()),
            "train_cut_timestamp": int(train_cut),
            "valid_cut_timestamp": int(valid_cut),
        },
    )


def _given(rows: OrderedRows, log: CanonicalLog) -> Cut:
    splits_R = rows.splits_R
    if splits_R is None:
        raise ValueError(
            f"{log.folder}/interactions: protocol given needs a column split "
            f"(one of {', '.join(SPLITS)}); import it or choose another log.protocol"
        )
    is_user_start_R = np.zeros(len(splits_R), dtype=np.bool_)
    is_user_start_R[rows.offsets_U1[:-1]] = True
    backwards_R = (np.diff(splits_R, prepend=0) < 0) & ~is_user_start_R
    torn_R = splits_R != splits_R[rows.basket_start_R]
    for is_bad_R, complaint in (
        (torn_R, "events at one timestamp stand in different splits"),
        (backwards_R, "an event of an earlier split follows one of a later split"),
    ):
        if is_bad_R.any():
            row = int(np.flatnonzero(is_bad_R)[0])
            user = int(np.searchsorted(rows.offsets_U1, row, side="right") - 1)
            raise ValueError(
                f"{log.folder}/interactions: user {rows.user_ids[user]!r}, timestamp "
                f"{rows.timestamps_R[row]}: {complaint}; mend the split column, or "
                "choose leave-last-out"
            )
    user_first_R = np.repeat(rows.offsets_U1[:-1], np.diff(rows.offsets_U1))
    is_blank_R = (rows.basket_start_R == user_first_R) & (splits_R > 0)
    return Cut(
        train_end_U=_count_by_user(rows, splits_R == 0),
        valid_end_U=_count_by_user(rows, splits_R <= 1),
        valid_rows=np.flatnonzero(splits_R == 1),
        test_rows=np.flatnonzero(splits_R == 2),
        counts={"targets_kept_no_history": int(is_blank_R.sum())},
    )


def _count_by_user(
    rows: OrderedRows, is_counted_R: npt.NDArray[np.bool_]
) -> Int32Array:
    total_R1 = np.append(0, np.cumsum(is_counted_R))
    return np.diff(total_R1[rows.offsets_U1]).astype(np.int32)


PROTOCOLS: dict[str, Callable[[OrderedRows, CanonicalLog], Cut]] = {
    "leave-last-out": _leave_last_out,
    "chronological": _chronological,
    "given": _given,
}
