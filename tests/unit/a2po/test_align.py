"""Post-training on the planted log: what it moves, ships, notes, and when it stops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.a2po import align as loop
from sgrec_torchrec.a2po.advantage import FUSIONS
from sgrec_torchrec.a2po.reward import Group, next_item_reward
from sgrec_torchrec.files.run_folder import BEST, CHECKPOINTS
from sgrec_torchrec.reward_table import RewardTable


def test_validations_are_noted_with_the_pretrained_one_first(finished) -> None:
    lines = [line for line in finished.metrics() if line.stage == "valid"]
    # After 4, 8 and 12 steps: noted with the step that they follow.
    assert [line.step for line in lines] == [0, 3, 7, 11]
    ndcg = [next(iter(line.values.values())) for line in lines]
    assert set(lines[0].values) == {"pretrained NDCG@10"}
    assert all(set(line.values) == {"NDCG@10"} for line in lines[1:])
    assert ndcg[0] == finished.start_ndcg == finished.state.start_ndcg
    assert finished.state.best_ndcg == max(ndcg)
    assert finished.state.best_step == [0, 4, 8, 12][int(np.argmax(ndcg))]
    assert finished.state.step == 12


def test_model_holds_the_best_validation_at_the_end(finished) -> None:
    assert finished.end_ndcg == finished.state.best_ndcg
    assert finished.steps_saved(BEST) == [finished.state.best_step]
    assert finished.steps_saved(CHECKPOINTS) == [5, 10, 12]


def test_all_but_the_tables_moves_and_no_table_by_a_bit(trial) -> None:
    made = trial()
    before = made.weights()
    made.run()
    tables = {name for name in before if name.startswith("tables.")}
    assert len(tables) == 5
    assert made.moved_since(before) == before.keys() - tables


def test_judgements_reach_the_steps_and_misses_are_logged(finished) -> None:
    assert np.mean(finished.figures("judged_share")) > 0
    assert 0 < np.mean(finished.figures("judged_rollouts")) < 0.5
    assert np.mean(finished.figures("mean_lambda")) > 0
    misses = finished.aligner.semantic.misses
    assert 0 < misses.num_missing < misses.num_asked
    assert len(misses) > 0
    shares = [finished.figures(name) for name in ("in_table_share", "missed_rollouts")]
    # 16 prompts a step of 8 rollouts: the table was asked for those of its users.
    asked = sum(share * 16 * 8 for share in shares[0])
    assert misses.num_asked == pytest.approx(asked)
    missed = sum(a * b * 16 * 8 for a, b in zip(*shares, strict=True))
    assert misses.num_missing == pytest.approx(missed)


def test_guards_are_quiet_in_a_healthy_run(finished) -> None:
    figures = finished.figures
    assert len(figures("loss")) == 12
    assert set(figures("bound_violations")) == {0.0}
    assert set(figures("clamp_share")) == {0.0}
    assert set(figures("clip_share")) == {0.0}  # one update a rollout
    kl = figures("kl_mean")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > kl[0]
    assert all(0 < value <= 1 for value in figures("distinct_top1"))
    assert all(0 < value < math.log(16) for value in figures("entropy"))
    assert not finished.state.has_collapsed


def test_targets_are_found_more_often_afterwards(trial) -> None:
    def hit_share() -> float:
        aligner = made.aligner
        rolled = loop._roll_out(aligner, np.arange(len(aligner.prompts)), step=0)
        target_E = torch.from_numpy(aligner.prompts.rows.target_E)[:, None]
        return float((rolled.rollout.item_BG == target_E).any(1).float().mean())

    made = trial(num_steps=40, lr=3e-3)
    before = hit_share()
    made.run()
    assert hit_share() > before + 0.02


def test_patience_stops_the_run_and_the_pretrained_model_ships(trial) -> None:
    made = trial(valid_every_steps=1, patience=3)
    start = made.weights()
    # An equal figure is no better one.
    state = made.run([0.5, 0.49, 0.5, 0.48])
    assert (state.step, state.best_step, state.stale_validations) == (3, 0, 3)
    assert not state.has_collapsed
    assert not made.moved_since(start)


def noting(made, ndcg: list[float], seen: list):
    """A validation that keeps the weights that it was shown."""
    left = iter(ndcg)

    def validate() -> float:
        seen.append(made.weights())
        return next(left)

    return validate


def test_what_went_before_ships_until_post_training_has_its_first_weights(
    trial,
) -> None:
    made = trial(num_steps=1, valid_every_steps=1)
    best = made.aligner.folder / "best"
    shipped: list[int] = []

    def validate() -> float:
        shipped.append(len(list(best.iterdir())) if best.exists() else 0)
        return 0.5

    for _ in range(2):
        made.run(validate)
    assert shipped == [0, 1, 1, 1]


def test_patience_starts_anew_at_a_better_validation(trial) -> None:
    made, seen = trial(valid_every_steps=1, patience=2, num_steps=6), []
    state = made.run(noting(made, [0.5, 0.49, 0.6, 0.59, 0.58], seen))
    assert (state.step, state.best_step, state.best_ndcg) == (4, 2, 0.6)
    assert made.moved_since(seen[0])
    assert not made.moved_since(seen[2])


def test_collapsed_validation_restores_the_best_and_says_so(trial, capsys) -> None:
    made, seen = trial(valid_every_steps=1, min_ndcg_share=0.8), []
    # The floor is .8 x .5, of the pretrained model.
    state = made.run(noting(made, [0.5, 0.6, 0.401, 0.399], seen))
    assert state.has_collapsed
    assert (state.step, state.best_step) == (3, 1)
    assert not made.moved_since(seen[1])
    told = "post-training has collapsed at step 3: validation NDCG@10 0.3990"
    assert told in capsys.readouterr().out


def test_sick_policy_restores_the_best_and_says_so(trial, capsys, monkeypatch) -> None:
    floors: list[float] = []

    def health(figures: dict[str, float], min_distinct: float) -> str | None:
        floors.append(min_distinct)
        return "the test says so" if len(floors) == 2 else None

    monkeypatch.setattr(loop, "health", health)
    made = trial(min_distinct_share=0.25)
    start = made.weights()
    state = made.run([0.5])
    assert state.has_collapsed
    assert state.step == 3  # of the first step only the breadth is noted
    assert not made.moved_since(start)
    assert floors == [0.25 * made.figures("distinct_top1")[0]] * 2
    told = "post-training has collapsed at step 3: the test says so"
    assert told in capsys.readouterr().out


def likes_item_0(group: Group) -> Tensor:
    return (group.item_BG == 0).float()


def test_policy_that_has_lost_its_breadth_is_found_out(trial) -> None:
    made = trial(likes_item_0, num_steps=40, lr=3e-2, kl_weight=0.0)
    start = made.weights()
    state = made.run([0.5] * 11)
    assert state.has_collapsed
    assert state.step < 40
    assert not made.moved_since(start)


def test_diverged_loss_ships_the_pretrained_model(trial, monkeypatch) -> None:
    real = loop.policy_batch

    def poisoned(*rest, **words):
        batch = real(*rest, **words)
        terms = replace(batch.terms, advantage_S=batch.terms.advantage_S * math.nan)
        return replace(batch, terms=terms)

    monkeypatch.setattr(loop, "policy_batch", poisoned)
    made = trial()
    start = made.weights()
    state = made.run([0.5])
    assert state.has_collapsed
    assert state.step == 2
    assert not made.moved_since(start)


def no_reward(group: Group) -> Tensor:
    return torch.zeros(group.item_BG.shape)


def test_step_without_a_live_group_updates_nothing(trial) -> None:
    made = trial(no_reward, num_steps=3)
    start = made.weights()
    assert made.run().step == 3
    assert not made.moved_since(start)
    assert made.figures("dead_share") == [1.0] * 3
    assert made.figures("loss") == [0.0] * 3


def bad_for_item_3(group: Group) -> Tensor:
    reward_BG = next_item_reward(group)
    return reward_BG.masked_fill(group.item_BG == 3, math.nan)


def test_reward_that_is_not_finite_stops_the_run_by_name(trial) -> None:
    with pytest.raises(ValueError, match=r"user 'u\d+', item 'i\d+': business reward"):
        trial(bad_for_item_3).run()


def test_groups_with_a_bad_reward_are_dropped_and_counted_where_asked(trial) -> None:
    made = trial(bad_for_item_3, num_steps=4, drop_bad_rewards=True)
    made.run()
    assert 0 < np.mean(made.figures("dropped_share")) < 1
    for line in made.metrics():
        assert all(math.isfinite(value) for value in line.values.values())


def some_semantics(group: Group) -> tuple[Tensor, Tensor]:
    """Half of the rollouts are judged, by their item's number."""
    return (group.item_BG % 7).float(), group.item_BG % 2 == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_runs(trial, fusion: str) -> None:
    made = trial(next_item_reward, some_semantics, num_steps=2, fusion=fusion)
    start = made.weights()
    made.run()
    assert made.moved_since(start)
    assert all(math.isfinite(loss) for loss in made.figures("loss"))
    is_bound = fusion in ("a2po", "grpo")
    assert (sum(made.figures("bound_violations")) == 0) == is_bound
    assert np.mean(made.figures("judged_share")) > 0


def test_judged_prompts_are_asked_and_no_others(trial, table) -> None:
    made = trial(num_steps=2, prompts="judged", table=str(table))
    aligner = made.aligner
    assert aligner.semantic.is_judged_E.all()
    users = aligner.prompts.rows.user_E
    judged = RewardTable.open(table).as_of(aligner.split.user_ids)[2]
    assert sorted(users.tolist()) == judged.nonzero()[0].tolist()
    made.run()
    assert made.figures("in_table_share") == [1.0, 1.0]
    # Every other item is judged: the rest are misses.
    assert all(0 < share < 1 for share in made.figures("missed_rollouts"))


def test_several_updates_learn_from_the_same_rollouts(trial) -> None:
    settings = {"num_steps": 1, "rollouts": "beam", "lr": 0.01, "warmup_steps": 0}
    once = trial(**settings)
    once.run()
    after_one = once.weights()
    assert once.figures("kl_mean")[0] == pytest.approx(0.0, abs=1e-6)
    twice = trial(**settings, updates_per_rollout=2)
    twice.run()
    assert twice.moved_since(after_one)
    # The figures are of the last update, whose policy has moved on.
    assert twice.figures("kl_mean")[0] > 1e-6
    # The ratio is to the policy that rolled out, not to that of the update before.
    assert twice.figures("clip_share")[0] > 0


def test_groups_weigh_what_their_target_was_worth_and_dead_ones_nothing(
    trial, monkeypatch
) -> None:
    # Prompt n is worth n + 1; those with an odd number are dead.
    def odd_ones_are_dead(group: Group) -> Tensor:
        is_live_B = torch.from_numpy(group.prompt_B % 2 == 0)
        return (group.item_BG % 5).float() * is_live_B[:, None]

    real, asked, weighed = loop._step, [], []

    def step_of(aligner, prompt_B, step, sample):
        asked.extend(prompt_B.tolist())
        return real(aligner, prompt_B, step, sample)

    make_batch = loop.policy_batch

    def batch_of(features, rolled, advantage_BG, weight_B, settings, **more):
        weighed.extend(weight_B.tolist())
        assert more["scale"] == 1 / (len(weight_B) * settings.num_rollouts)
        return make_batch(features, rolled, advantage_BG, weight_B, settings, **more)

    monkeypatch.setattr(loop, "_step", step_of)
    monkeypatch.setattr(loop, "policy_batch", batch_of)
    made = trial(odd_ones_are_dead, num_steps=2)
    worth_E = np.arange(1.0, len(made.aligner.prompts) + 1, dtype=np.float32)
    prompts = replace(made.aligner.prompts, value_weight_E=worth_E)
    replace(made, aligner=replace(made.aligner, prompts=prompts)).run()
    assert len(asked) == 32
    assert weighed == [prompt + 1.0 for prompt in asked if prompt % 2 == 0]


def test_seen_items_are_not_asked_where_the_log_never_repeats(trial) -> None:
    made = trial()
    prompts = np.arange(20)
    for is_filtered in (False, True):
        log = replace(made.aligner.config.log, filter_seen=is_filtered)
        config = replace(made.aligner.config, log=log)
        aligner = replace(made.aligner, config=config)
        item_BG = loop._roll_out(aligner, prompts, step=0).rollout.item_BG
        seen_BH = loop._batch(aligner, prompts).seen_item_BH()
        again_BGH = item_BG[..., None] == seen_BH[:, None]
        assert bool((again_BGH & (item_BG >= 0)[..., None]).any()) != is_filtered


def test_noise_is_a_function_of_step_and_prompt_alone(trial) -> None:
    def items(prompt_B: np.ndarray, step: int) -> Tensor:
        return loop._roll_out(made.aligner, prompt_B, step).rollout.item_BG

    made, prompts = trial(), np.arange(20)
    whole = items(prompts, step=3)
    assert torch.equal(items(prompts[5::2], step=3), whole[5::2])
    assert not torch.equal(items(prompts, step=4), whole)
