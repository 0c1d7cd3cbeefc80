"""The arms that post-training is compared by.

The pretrained model; the business reward alone (GRPO); Reward-Sum and Adv-Sum; A2PO;
A2PO with a shuffled judge, whose rewards are given to other rollouts of their group:
what a judge's spread alone would do; and A2PO that hears the judge on 5 % of the judged
users alone. All but the last have the same judged mask.
"""

from collections.abc import Sequence
from pathlib import Path

from sgrec_torchrec.a2po.reward import (
    FewerJudgedReward,
    JudgedReward,
    SemanticReward,
    ShuffledReward,
)
from sgrec_torchrec.config import RUNS
from sgrec_torchrec.reward_table import RewardTable

PRETRAINED, GRPO = "pretrained", "grpo"
SHUFFLED, FEW = "a2po-shuffled", "a2po-few-judged"
FEW_SHARE = 0.05
"""Of the judged users, whom S-GRec asks its judge about."""
ARMS = {
    PRETRAINED: None,
    GRPO: "grpo",
    "reward-sum": "reward-sum",
    "adv-sum": "adv-sum",
    "a2po": "a2po",
    SHUFFLED: "a2po",
    FEW: "a2po",
}
"""Arm -> its fusion."""


def chosen_arms(data: str, arms: Sequence[str] | None, table: Path | None) -> list[str]:
    """The arms to run, in order.

    Args:
        data: a name in ``RUNS``.
        arms: names in ``ARMS``; None for all that the table allows.
        table: of the judge; None leaves nothing but GRPO beside the pretrained model.

    Raises:
        FileNotFoundError: where there is no such table.
        ValueError: for an unknown log or arm, or one that needs a table.
    """
    if data not in RUNS:
        raise ValueError(f"unknown log {data!r}: choose one of {', '.join(RUNS)}")
    if table is not None:
        RewardTable.open(table)
    allowed = list(ARMS) if table is not None else [PRETRAINED, GRPO]
    for arm in arms or ():
        if arm not in ARMS:
            raise ValueError(f"unknown arm {arm!r}: choose of {', '.join(ARMS)}")
        if arm not in allowed:
            raise ValueError(f"arm {arm!r} needs a judge: give its reward table")
    return [arm for arm in allowed if arms is None or arm in arms]


def heard(semantic: SemanticReward, arm: str, seed: int) -> SemanticReward:
    """What the arm gets to hear of the judge."""
    if arm == SHUFFLED:
        return ShuffledReward(semantic, seed)
    if arm == FEW:
        assert isinstance(semantic, JudgedReward)
        return FewerJudgedReward(semantic, FEW_SHARE, seed)
    return semantic
