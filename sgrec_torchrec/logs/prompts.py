"""A prepared log -> prompts: prefixes of users' events, and what followed them.

Letters: U users, E prompts.
"""

import numpy as np

from sgrec_torchrec.logs.judged_users import is_label_user
from sgrec_torchrec.schema import (
    EvalRows,
    Float64Array,
    Int64Array,
    Sequences,
    SplitLog,
)


def eligible_prompts(split: SplitLog, seed: int, max_history: int) -> EvalRows:
    """Each user's newest of ``eligible_targets``."""
    return eligible_targets(split, seed, max_history, 1)


def eligible_targets(
    split: SplitLog, seed: int, max_history: int, per_user: int
) -> EvalRows:
    """Each user's newest ``per_user`` train events that have an earlier basket.

    In the order of the log. Label users are left out: the judge learns from them. A
    history holds nothing of its target's timestamp, and at most ``max_history`` events;
    ``history_end_E`` is as_of, the number of events before that timestamp. Time and
    memory grow with users times ``per_user``. No ranks communicate.
    """
    sequences = split.sequences
    first_U = sequences.offsets_U1[:-1]
    last_U = first_U + sequences.train_end_U - 1
    taught = np.flatnonzero(~is_label_user(split.user_ids, seed))
    users, rows, as_ofs = [], [], []
    for back in range(per_user):
        user = taught[last_U[taught] - back >= first_U[taught]]
        row = last_U[user] - back
        as_of = _basket_starts(sequences, user, row) - first_U[user]
        kept = as_of > 0
        users.append(user[kept])
        rows.append(row[kept])
        as_ofs.append(as_of[kept])
    user_E, row_E = np.concatenate(users), np.concatenate(rows)
    return _prompts(sequences, user_E, row_E, np.concatenate(as_ofs), max_history)


def prompts_after(
    split: SplitLog, seed: int, max_history: int, as_of_U: Int64Array
) -> EvalRows:
    """The prompt of each user after a given prefix: ``eligible_targets`` of those.

    Its target is the last event of the basket that follows, as in
    ``eligible_prompts``. A user whose prefix does not end before a basket of the train
    period gives none. No ranks communicate.

    Args:
        as_of_U: int64 [U], the number of events of the prefix; -1 for no prompt.
    """
    sequences = split.sequences
    is_asked_U = (as_of_U > 0) & (as_of_U < sequences.train_end_U)
    user = np.flatnonzero(is_asked_U & ~is_label_user(split.user_ids, seed))
    first, as_of = sequences.offsets_U1[user], as_of_U[user]
    start, end = first + as_of, first + sequences.train_end_U[user]
    is_cut = sequences.timestamps_R[start] != sequences.timestamps_R[start - 1]
    user, as_of, start, end = (part[is_cut] for part in (user, as_of, start, end))
    row = _basket_ends(sequences, start, end)
    return _prompts(sequences, user, row, as_of, max_history)


def fresh_targets(
    split: SplitLog, seed: int, max_history: int, per_user: int
) -> EvalRows:
    """Each user's newest ``per_user`` valid rows: what no pretraining has learned from.

    In the order of the split, label users and rows without a history left out, as in
    ``eligible_targets``. No ranks communicate.
    """
    rows = split.valid
    is_asked_E = ~is_label_user(split.user_ids, seed)[rows.user_E]
    rows = rows.take(np.flatnonzero(is_asked_E & (rows.history_end_E > 0)))
    order = np.lexsort((rows.history_end_E, rows.user_E))
    user_E = rows.user_E[order]
    ends_E = np.searchsorted(user_E, user_E, side="right")
    newest = order[ends_E - np.arange(len(order)) <= per_user]
    return rows.take(np.sort(newest)).with_history(max_history)


def target_values(rows: EvalRows, split: SplitLog) -> Float64Array:
    """The value of each row's target event, float64 [E], NaN where unknown.

    Of an item that is twice in its basket the first event.
    """
    sequences = split.sequences
    row = sequences.offsets_U1[rows.user_E] + rows.history_end_E
    last = sequences.offsets_U1[rows.user_E + 1] - 1
    value_E = np.full(len(rows), np.nan)
    going = np.arange(len(rows))
    while len(going):
        going = going[row[going] <= last[going]]
        at = row[going]
        is_due = sequences.timestamps_R[at] == rows.target_timestamp_E[going]
        is_target = is_due & (sequences.items_R[at] == rows.target_E[going])
        value_E[going[is_target]] = sequences.values_R[at[is_target]]
        going = going[is_due & ~is_target]
        row[going] += 1
    return value_E


def _prompts(
    sequences: Sequences,
    user_E: Int64Array,
    row_E: Int64Array,
    as_of_E: Int64Array,
    max_history: int,
) -> EvalRows:
    """Prompts in the order of their targets' rows."""
    order = np.argsort(row_E, kind="stable")
    row_E, end_E = row_E[order], as_of_E[order].astype(np.int32)
    prompts = EvalRows(
        user_E=user_E[order],
        history_start_E=np.zeros_like(end_E),
        history_end_E=end_E,
        target_E=sequences.items_R[row_E],
        target_timestamp_E=sequences.timestamps_R[row_E],
    )
    return prompts.with_history(max_history)


def _basket_ends(
    sequences: Sequences, start: Int64Array, end: Int64Array
) -> Int64Array:
    """The last row, before ``end``, of the basket that begins at ``start``."""
    last, going = start.copy(), np.arange(len(start))
    while len(going):
        going = going[last[going] + 1 < end[going]]
        times = sequences.timestamps_R[last[going] + 1]
        going = going[times == sequences.timestamps_R[start[going]]]
        last[going] += 1
    return last


def _basket_starts(
    sequences: Sequences, user: Int64Array, row: Int64Array
) -> Int64Array:
    """The first row of the user's basket that holds ``row``."""
    first, start = sequences.offsets_U1[user], row.copy()
    going = np.arange(len(row))
    while len(going):
        going = going[start[going] > first[going]]
        times = sequences.timestamps_R[start[going] - 1]
        going = going[times == sequences.timestamps_R[row[going]]]
        start[going] -= 1
    return start
