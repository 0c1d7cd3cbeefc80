"""What is watched of a step, by hand; how a policy's illness is told."""

import math
from dataclasses import replace

import pytest
import torch

from sgrec_torchrec.a2po.advantage import AdvantageStats
from sgrec_torchrec.a2po.figures import combined, health, step_figures
from sgrec_torchrec.a2po.rollout import PolicyOutput, RolledOut
from sgrec_torchrec.schema import Rollout


def rolled_out() -> RolledOut:
    """Three prompts, two slots; the second slot of prompt 2 is empty."""
    nothing = torch.zeros(3, 2)
    return RolledOut(
        rollout=Rollout(
            item_BG=torch.tensor([[4, 1], [4, 2], [7, -1]]),
            codes_BGL=torch.zeros(3, 2, 1, dtype=torch.int64),
            logprob_BG=nothing,
            logprob_sampling_BG=nothing,
            key_BG=nothing,
        ),
        logprob_reference_BGL=nothing[..., None],
        entropy_B=torch.tensor([1.0, 2.0, 3.0]),
    )


def stats() -> AdvantageStats:
    """Groups 0 and 2 are live, groups 0 and 1 are judged."""
    nothing = torch.zeros(3, 2)
    return AdvantageStats(
        advantage_BG=nothing,
        business_BG=nothing,
        semantic_BG=nothing,
        lambda_BG=nothing,
        is_live_B=torch.tensor([True, False, True]),
        is_judged_B=torch.tensor([True, True, False]),
        same_sign_share=0.5,
        mean_lambda=0.25,
        bound_violations=0,
    )


OUTPUT = PolicyOutput(
    loss=torch.tensor(-0.5),
    logprob_SL=torch.zeros(6, 1),
    kl_S=torch.arange(4.0),
    clip_share=torch.tensor(0.25),
    clamp_share=torch.tensor(0.5),
)
R_BIZ = torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 2.0]])
JUDGED = torch.tensor([[True, True], [True, True], [False, True]])
IN_TABLE = torch.tensor([True, True, False])
GOOD = torch.tensor([True, True, False])


def test_figures_of_a_step_by_hand() -> None:
    made = step_figures(
        rolled_out(), stats(), JUDGED, IN_TABLE, GOOD, R_BIZ, OUTPUT, has_own=True
    )
    figures = combined(made)
    expected = {
        "reward": 3 / 6,
        "dead_share": 1 / 3,
        "dropped_share": 1 / 3,
        "judged_share": 1 / 3,  # group 1 is judged, but dead
        "judged_rollouts": 5 / 6,
        "in_table_share": 2 / 3,
        "live_in_table": 1 / 2,
        "missed_rollouts": 0.0,  # prompt 2 asks no table
        "empty_slots": 1 / 6,
        "same_sign_share": 0.5,
        "mean_lambda": 0.25,
        "bound_violations": 0.0,
        "entropy": 2.0,
        "loss": -0.5,
        "clip_share": 0.25,
        "clamp_share": 0.5,
        "distinct_top1": 2 / 3,  # items 4 and 7 over three prompts
        "kl_mean": 1.5,
        "kl_p99": 2.97,  # numpy's linear quantile of 0, 1, 2, 3
    }
    assert figures == pytest.approx(expected)


def test_step_without_an_update_has_no_loss_and_no_kl() -> None:
    figures = combined(
        step_figures(
            rolled_out(), stats(), JUDGED, IN_TABLE, GOOD, R_BIZ, None, has_own=True
        )
    )
    for name in ("loss", "kl_mean", "kl_p99", "clip_share", "clamp_share"):
        assert figures[name] == 0.0, name
    assert figures["reward"] == pytest.approx(0.5)


def test_a_rank_without_prompts_counts_none_of_what_it_asked_along() -> None:
    idle = step_figures(
        rolled_out(), stats(), JUDGED, IN_TABLE, GOOD, R_BIZ, OUTPUT, has_own=False
    )
    busy = step_figures(
        rolled_out(), stats(), JUDGED, IN_TABLE, GOOD, R_BIZ, OUTPUT, has_own=True
    )
    assert idle.sums.keys() == busy.sums.keys()  # added up name by name
    assert len(idle.top_item_B) == 0
    figures = combined(idle)
    for name in ("reward", "dead_share", "judged_share", "entropy", "mean_lambda"):
        assert figures[name] == 0.0, name
    assert figures["distinct_top1"] == 0.0


def test_violations_are_counted_and_not_averaged() -> None:
    off = replace(stats(), bound_violations=3)
    made = step_figures(
        rolled_out(), off, JUDGED, IN_TABLE, GOOD, R_BIZ, OUTPUT, has_own=True
    )
    assert combined(made)["bound_violations"] == 3.0


WELL = {"loss": -0.1, "kl_mean": 0.01, "distinct_top1": 0.5}


@pytest.mark.parametrize(
    ("changes", "floor", "words"),
    [
        ({}, 0.4, None),
        ({}, 0.5, None),
        ({"distinct_top1": 0.3}, 0.4, "only 30.0% of the prompts"),
        ({"distinct_top1": 0.3}, 0.4, "the floor is 40.0%"),
        ({"loss": math.nan}, 0.0, "loss nan, KL 0.01"),
        ({"kl_mean": math.inf}, 0.0, "loss -0.1, KL inf"),
    ],
)
def test_illness_is_told_in_words(
    changes: dict[str, float], floor: float, words: str | None
) -> None:
    complaint = health(WELL | changes, floor)
    if words is None:
        assert complaint is None
    else:
        assert complaint is not None
        assert words in complaint
