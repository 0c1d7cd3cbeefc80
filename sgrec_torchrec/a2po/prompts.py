"""A prepared log -> the prompts of post-training, the same for any number of ranks.

A prompt is a prefix of a user's events and the item that followed it. Users whom the
judge has learned from give none. Letters: U users, E prompts, B prompts of a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.hashing import PROMPT, hash64
from sgrec_torchrec.logs.prompts import (
    eligible_targets,
    fresh_targets,
    prompts_after,
    target_values,
)
from sgrec_torchrec.reward_table import RewardTable
from sgrec_torchrec.schema import (
    EvalRows,
    Float32Array,
    Float64Array,
    Int64Array,
    SplitLog,
)

_LACKING = {
    "judged": "none of the users in align.table was judged before a basket of this "
    "log's train period; judge candidates of this run, or set align.prompts=newest",
    "newest": "a train period of two baskets or more, of a user that the judge has not "
    "learned from",
    "fresh": "a valid row of a user that the judge has not learned from; set "
    "align.prompts=newest",
}
"""``align.prompts`` -> what is not there, and the mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """All prompts. 40 bytes each.

    ``as_of_E`` int32: the number of the user's events before the target's basket; the
    history of ``rows`` is its newest ``log.max_history``.
    """

    rows: EvalRows
    value_weight_E: Float32Array
    """What the group counts: its target's value over the mean, clipped; else 1."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def as_of_E(self) -> npt.NDArray[np.int32]:
        """As the class says."""
        return self.rows.history_end_E


def post_training_prompts(
    split: SplitLog, config: RunConfig, table: RewardTable | None = None
) -> Prompts:
    """The prompts that ``align.prompts`` names, oldest first.

    newest: each post-training user's newest targets of the train period that have an
    earlier basket. fresh: those of the valid rows, which pretraining has not learned
    from. judged: each judged user's one target after the prefix that ``table`` names.
    Time and memory grow with users times ``align.prompts_per_user``.

    Raises:
        ValueError: where no user has one, judged ones are asked of no table, or fresh
            ones of a run that is fitted on its valid rows.
    """
    settings, log = config.align, config.log
    if settings.prompts == "judged":
        as_of_U = _judged_prefixes(split, table)
        rows = prompts_after(split, log.seed, log.max_history, as_of_U)
    else:
        if settings.prompts == "fresh" and log.fit_on != "train":
            raise ValueError(
                "align.prompts = fresh asks the valid rows, but log.fit_on = "
                f"{log.fit_on} learns from them: set log.fit_on=train, or "
                "align.prompts=newest"
            )
        find = fresh_targets if settings.prompts == "fresh" else eligible_targets
        rows = find(split, log.seed, log.max_history, settings.prompts_per_user)
    if not len(rows):
        raise ValueError(
            f"no user has a prompt for post-training: {_LACKING[settings.prompts]}"
        )
    weight_E = np.ones(len(rows), dtype=np.float32)
    if split.sequences.has_value:
        value_E = target_values(rows, split)
        weight_E = _value_weights(value_E, settings.max_value_weight)
    return Prompts(rows=rows, value_weight_E=weight_E)


def _judged_prefixes(split: SplitLog, table: RewardTable | None) -> Int64Array:
    """int64 [U]: after how many events each user was judged, else -1."""
    if table is None:
        raise ValueError(
            "align.prompts = judged needs the judge's table: name its folder by "
            "align.table, or set align.prompts=newest"
        )
    position_U: Int64Array = table.as_of(split.user_ids)[0]
    return position_U


def _value_weights(value_E: Float64Array, largest: float) -> Float32Array:
    """value / mean(value), clipped to [1 / largest, largest]: S-GRec keeps money so.

    An event without a value counts 1, as the average does.
    """
    known_E = ~np.isnan(value_E)
    worth_E = value_E.clip(min=0)  # a refund is worth no more than nothing
    mean = float(worth_E[known_E].mean()) if known_E.any() else 0.0
    if mean <= 0:
        return np.ones_like(value_E)
    weight_E = np.where(known_E, worth_E / mean, 1.0).clip(1 / largest, largest)
    return weight_E.astype(np.float32)


def prompt_batches(
    num_prompts: int, batch_size: int, seed: int, first_step: int
) -> Iterator[Int64Array]:
    """Global batches of prompt numbers without end, from ``first_step`` on.

    Each epoch is a permutation by hash of (seed, epoch, prompt); its last batch may be
    short. A pure function of its arguments, so a run goes on anywhere.
    """
    per_epoch = -(-num_prompts // batch_size)
    epoch, step = divmod(first_step, per_epoch)
    while True:
        keys = hash64(seed, PROMPT, epoch, np.arange(num_prompts))
        order = np.argsort(keys, kind="stable")
        for place in range(step, per_epoch):
            yield order[place * batch_size : (place + 1) * batch_size]
        epoch, step = epoch + 1, 0
