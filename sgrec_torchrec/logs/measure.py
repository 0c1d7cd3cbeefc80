"""Measured properties of a log -> the settings that were left open (``None``).

One family of settings then fits logs that nobody has seen. Every rule stands in
``resolve`` with its reason.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.config import CODES_LARGE, CODES_SMALL, RunConfig
from sgrec_torchrec.schema import Int64Array, Sequences, SplitLog

CODES_PER_ITEM = 8
"""K^L must be at least this times N: room to resolve collisions and append items."""
MAX_REPEATS_TO_FILTER = 0.01
MIN_REPEATS_TO_REMEMBER = 0.1
LONG_HISTORY = 2_000
SPARSE_LOG = (5.0, 0.8)
"""Up to so many events per item, the teacher has this share of the loss."""
DENSE_LOG = (100.0, 0.1)
"""From so many events per item on, this share; in between, linear in the log."""
STEPS_PER_EPOCH = 48
BATCH_SIZES = (16, 1024)
SHOWN_EVENTS = 2.5e6
EPOCHS = (2, 16)
DRAWS_PER_EPOCH = 100_000
MAX_DRAWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMeasures:
    """What a log is like. Shares are in [0, 1], of the train period's events.

    Only ``unseen_share`` looks at targets, and only at which items they are.
    """

    num_users: int
    num_items: int
    """Of the catalogue, with or without events."""
    num_events: int
    """Of the train period."""
    events_per_item: float
    median_length: float
    """Events per user in the train period."""
    p90_length: float
    repeat_share: float
    """Events whose item the user had at an earlier timestamp."""
    basket_share: float
    """Events that share user and timestamp with another one."""
    unseen_share: float
    """Valid and test targets whose item has no event in the train period."""
    has_clock: bool
    has_text: bool
    has_value: bool
    sid_codes: int
    """Largest of the user's own codes, plus 1; 0 where the catalogue has no sid."""


def measure_log(split: SplitLog) -> LogMeasures:
    """Measure a prepared split. O(R log R) time, 40 bytes an event; no communication.

    The train period is what comes before ``train_end_U``, also in a refit, so that
    settings never depend on evaluated events.
    """
    sequences = split.sequences
    train_U = sequences.train_end_U.astype(np.int64)
    num_events = int(train_U.sum())
    user_R, row_R = sequences.events_until(sequences.train_end_U)
    items_R, times_R = sequences.items_R[row_R], sequences.timestamps_R[row_R]
    is_known_N = np.zeros(sequences.num_items, dtype=np.bool_)
    is_known_N[items_R] = True
    targets = np.concatenate([split.valid.target_E, split.test.target_E])
    sid_NL = split.catalogue.sid_NL
    return LogMeasures(
        num_users=sequences.num_users,
        num_items=sequences.num_items,
        num_events=num_events,
        events_per_item=num_events / max(1, sequences.num_items),
        median_length=float(np.median(train_U)),
        p90_length=float(np.quantile(train_U, 0.9)),
        repeat_share=_mean(_is_repeat(user_R, items_R, times_R, sequences)),
        basket_share=_mean(_is_shared(user_R, times_R)),
        unseen_share=_mean(~is_known_N[targets]),
        has_clock=sequences.has_clock,
        has_text=any(split.catalogue.texts),
        has_value=sequences.has_value,
        sid_codes=0 if sid_NL is None else int(sid_NL.max(initial=-1)) + 1,
    )


def resolve(config: RunConfig, measures: LogMeasures) -> RunConfig:
    """Fill what is ``None``; what the user set stays.

    log.filter_seen: True where under 1 % of events repeat an item, since there a
        recommended item of the history is almost surely a miss.
    evidence.max_history: that of the log; 2,000 where over 10 % of events repeat an
        item, since then old purchases tell what comes again and cost it little.
    tokens.num_codes: 256, or 1024 where 256^L < 8 N (over 2e6 items at L = 3), and
        no less than the user's own codes need.
    pretrain.global_batch_size: the power of two that gives an epoch at least 48 steps,
        within [16, 1024]: a small log needs its updates, a large one its throughput.
    pretrain.num_epochs: as many as show 2.5e6 events, within [2, 16]: a small log needs
        its passes, a large one is long enough.
    pretrain.teacher_samples: about 1e5 draws an epoch, at most 8 a target: draws are
        what a small log can afford and a large one does not need.
    pretrain.teacher_weight: 0.8 up to 5 events per item, 0.1 from 100 on, linear in
        the logarithm between: the sparser the log, the more the evidence knows
        that the network cannot learn from it.

    ``graph.text_weight`` stays None: ``item_graph.choose`` finds it on valid rows.
    ``log.path`` and ``tokens.text_model`` keep their None, which is a choice itself.

    Raises:
        ValueError: where no number of codes gives every item its own SID.
    """
    filter_seen = config.log.filter_seen
    if filter_seen is None:
        filter_seen = measures.repeat_share < MAX_REPEATS_TO_FILTER
    num_codes = config.tokens.num_codes
    if num_codes is None:
        num_codes = codes_for(config, measures.num_items, measures.sid_codes)
    teacher_weight = config.pretrain.teacher_weight
    if teacher_weight is None:
        teacher_weight = _teacher_weight(measures.events_per_item)
    replace = dataclasses.replace
    return replace(
        config,
        log=replace(config.log, filter_seen=filter_seen),
        evidence=replace(
            config.evidence, max_history=_evidence_history(config, measures)
        ),
        tokens=replace(config.tokens, num_codes=num_codes),
        pretrain=replace(
            config.pretrain,
            teacher_weight=teacher_weight,
            teacher_samples=_teacher_samples(config, measures),
            global_batch_size=_global_batch_size(config, measures),
            num_epochs=_num_epochs(config, measures),
        ),
    )


def _evidence_history(config: RunConfig, measures: LogMeasures) -> int:
    if config.evidence.max_history is not None:
        return config.evidence.max_history
    if measures.repeat_share < MIN_REPEATS_TO_REMEMBER:
        return config.log.max_history
    return max(config.log.max_history, LONG_HISTORY)


def codes_for(config: RunConfig, num_items: int, sid_codes: int = 0) -> int:
    """K of so many items, where it is open; ``sid_codes`` as in ``LogMeasures``.

    Raises:
        ValueError: where no number of codes gives every item its own SID.
    """
    num_levels = config.tokens.num_levels
    for num_codes in (CODES_SMALL, CODES_LARGE):
        if num_codes**num_levels >= CODES_PER_ITEM * num_items:
            own = sid_codes if config.tokens.source == "sid" else 0
            return max(num_codes, own)
    raise ValueError(
        f"tokens.num_levels = {num_levels}: {CODES_LARGE} codes a level give fewer "
        f"than {CODES_PER_ITEM} SIDs for each of {num_items} items; raise "
        "tokens.num_levels or set tokens.num_codes"
    )


def _global_batch_size(config: RunConfig, measures: LogMeasures) -> int:
    if config.pretrain.global_batch_size is not None:
        return config.pretrain.global_batch_size
    stride = max(1, config.log.max_history // 2)
    num_windows = max(measures.num_users, measures.num_events // stride)
    fitting = max(1, num_windows // STEPS_PER_EPOCH)
    smallest, largest = BATCH_SIZES
    return min(largest, max(smallest, 1 << (fitting.bit_length() - 1)))


def _num_epochs(config: RunConfig, measures: LogMeasures) -> int:
    if config.pretrain.num_epochs is not None:
        return config.pretrain.num_epochs
    fewest, most = EPOCHS
    return min(most, max(fewest, round(SHOWN_EVENTS / max(1, measures.num_events))))


def _teacher_samples(config: RunConfig, measures: LogMeasures) -> int:
    if config.pretrain.teacher_samples is not None:
        return config.pretrain.teacher_samples
    return min(MAX_DRAWS, max(1, DRAWS_PER_EPOCH // max(1, measures.num_events)))


def _teacher_weight(events_per_item: float) -> float:
    (sparse, most), (dense, least) = SPARSE_LOG, DENSE_LOG
    density = min(max(events_per_item, sparse), dense)
    share = math.log(density / sparse) / math.log(dense / sparse)
    return most + share * (least - most)


def _is_repeat(
    user_R: Int64Array,
    items_R: npt.NDArray[np.int32],
    times_R: Int64Array,
    sequences: Sequences,
) -> npt.NDArray[np.bool_]:
    """True for events later than their user's first event with the item; any order."""
    pair_R = user_R * sequences.num_items + items_R
    order_R = np.argsort(pair_R, kind="stable")
    pair_R, times_R = pair_R[order_R], times_R[order_R]
    is_first_R = np.diff(pair_R, prepend=-1) != 0
    first_R = np.maximum.accumulate(np.where(is_first_R, np.arange(len(pair_R)), 0))
    return np.asarray(times_R > times_R[first_R])


def _is_shared(user_R: Int64Array, times_R: Int64Array) -> npt.NDArray[np.bool_]:
    same_as_next = (np.diff(user_R) == 0) & (np.diff(times_R) == 0)
    is_shared_R = np.append(same_as_next, False) | np.append(False, same_as_next)
    return np.asarray(is_shared_R)


def _mean(is_true: npt.NDArray[np.bool_]) -> float:
    return float(is_true.mean()) if len(is_true) else 0.0
