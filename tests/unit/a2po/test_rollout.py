"""Groups of the live policy: their probabilities, their noise, and what they teach."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sgrec_torchrec.a2po.rollout import (
    PolicyOutput,
    RolledOut,
    frozen_copy,
    policy_batch,
    roll_out,
)
from sgrec_torchrec.config import AlignConfig, GeneratorConfig
from sgrec_torchrec.generator.beam import beam_search, sample_distinct
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.features import EventColumns
from sgrec_torchrec.logs.stream import EvalBatch, eval_batch
from sgrec_torchrec.schema import EvalRows, ItemTokens, Rollout

NUM_ITEMS, NUM_CODES, NUM_LEVELS, NUM_PROMPTS, NUM_ROLLOUTS = 12, 3, 3, 6, 5
SETTINGS = AlignConfig(num_rollouts=NUM_ROLLOUTS, rollouts="sample", temperature=1.5)
KEYS = torch.arange(NUM_PROMPTS) * 12345 + 7
NETWORK = GeneratorConfig(
    dim=8, num_layers=1, num_heads=2, decoder_width=12, dropout=0.5
)


@pytest.fixture
def tokens() -> ItemTokens:
    flat = np.random.default_rng(0).choice(NUM_CODES**NUM_LEVELS, NUM_ITEMS, False)
    codes = np.stack(np.unravel_index(flat, [NUM_CODES] * NUM_LEVELS), axis=1)
    return ItemTokens(codes_NL=codes.astype(np.int32), num_codes=NUM_CODES)


@pytest.fixture
def policy(tokens: ItemTokens) -> Generator:
    torch.manual_seed(0)
    trie = PrefixTrie.build(tokens.codes_NL, NUM_CODES)
    model = Generator(config=NETWORK, trie=trie, num_event_types=1)
    with torch.no_grad():
        for head in model.tower.decoder.heads:
            head.weight.mul_(4)
    return model.eval()


@pytest.fixture
def prompts(make_log, tokens: ItemTokens):
    """prompts(rows) -> EvalBatch; prompt n has seen items 0 to n."""
    lengths = range(1, NUM_PROMPTS + 1)
    users = {
        f"u{length}": [(place, 60 * place, float("nan")) for place in range(length)]
        for length in lengths
    }
    sequences = make_log(users).sequences
    ends = np.array(lengths, np.int32)
    rows = EvalRows(
        user_E=np.arange(NUM_PROMPTS),
        history_start_E=np.zeros(NUM_PROMPTS, np.int32),
        history_end_E=ends,
        target_E=np.full(NUM_PROMPTS, 11, np.int32),
        target_timestamp_E=np.zeros(NUM_PROMPTS, np.int64),
    )
    events = EventColumns.of(sequences)

    def make(numbers: list[int]) -> EvalBatch:
        return eval_batch(sequences, events, rows, np.array(numbers), tokens, NETWORK)

    return make


EVERY = list(range(NUM_PROMPTS))


def slow_logprob(model: Generator, batch: EvalBatch, item_BG: Tensor) -> Tensor:
    """[B, G, L]: each item of each prompt asked alone."""
    hidden_BD = model.encode_last(batch.features)
    return torch.stack(
        [
            torch.cat(
                [
                    item_logprob(
                        model.tower.decoder,
                        model.tower.trie,
                        hidden_BD[[prompt]],
                        torch.tensor([0]),
                        item[None],
                    )
                    for item in item_BG[prompt]
                ]
            )
            for prompt in range(len(item_BG))
        ]
    ).detach()


@pytest.mark.parametrize("kind", ["sample", "beam"])
def test_log_probabilities_are_those_of_the_same_items(
    policy, prompts, kind: str
) -> None:
    settings, batch = replace(SETTINGS, rollouts=kind), prompts(EVERY)
    rolled = roll_out(
        policy, frozen_copy(policy), batch, KEYS, settings, filter_seen=False
    )
    item_BG = rolled.rollout.item_BG
    assert item_BG.shape == (NUM_PROMPTS, NUM_ROLLOUTS)
    assert all(len(set(row)) == NUM_ROLLOUTS for row in item_BG.tolist())
    expected = slow_logprob(policy, batch, item_BG)
    torch.testing.assert_close(rolled.logprob_reference_BGL, expected)
    # At temperature 1, whatever it was drawn at.
    torch.testing.assert_close(rolled.rollout.logprob_BG, expected.sum(-1))


@pytest.mark.parametrize("kind", ["sample", "beam"])
@pytest.mark.parametrize("filter_seen", [False, True])
def test_groups_come_by_falling_log_probability(
    policy, prompts, kind: str, filter_seen: bool
) -> None:
    # A reward may depend on the place: it must be the policy's, not the noise's.
    rolled = roll_out(
        policy,
        frozen_copy(policy),
        prompts(EVERY),
        KEYS,
        replace(SETTINGS, rollouts=kind),
        filter_seen=filter_seen,
    )
    logprob_BG = rolled.rollout.logprob_BG
    assert (logprob_BG[:, 1:] <= logprob_BG[:, :-1]).all()
    codes = policy.tower.trie.codes_NL[rolled.rollout.item_BG.clamp(min=0)]
    is_real_BG1 = (rolled.rollout.item_BG >= 0)[..., None]
    assert torch.equal(rolled.rollout.codes_BGL, codes.long().where(is_real_BG1, -1))


def test_groups_are_the_beam_s_or_a_draw_at_the_temperature(policy, prompts) -> None:
    batch, reference, tower = prompts(EVERY), frozen_copy(policy), policy.tower
    hidden_BD = policy.encode_last(batch.features)
    asked = (tower.decoder, tower.trie, hidden_BD, NUM_ROLLOUTS)
    drawn = sample_distinct(*asked, KEYS, 1.5)
    for kind, expected in (("beam", beam_search(*asked)), ("sample", drawn)):
        settings = replace(SETTINGS, rollouts=kind)
        rolled = roll_out(policy, reference, batch, KEYS, settings, filter_seen=False)
        got = rolled.rollout
        assert torch.equal(got.item_BG.sort(1).values, expected.item_BG.sort(1).values)
        torch.testing.assert_close(
            got.logprob_sampling_BG.sort(1).values,
            expected.logprob_sampling_BG.sort(1).values,
        )


def test_reference_equals_the_policy_at_the_start_and_stays(policy, prompts) -> None:
    batch, reference = prompts(EVERY), frozen_copy(policy)
    before = roll_out(policy, reference, batch, KEYS, SETTINGS, filter_seen=False)
    torch.testing.assert_close(
        before.logprob_reference_BGL.sum(-1), before.rollout.logprob_BG
    )
    with torch.no_grad():
        for parameter in policy.tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = roll_out(policy, reference, batch, KEYS, SETTINGS, filter_seen=False)
    item_BG = after.rollout.item_BG
    gap_BG = after.rollout.logprob_BG - after.logprob_reference_BGL.sum(-1)
    assert gap_BG.abs().max() > 0.01
    policy.tower.load_state_dict(reference.state_dict())
    torch.testing.assert_close(
        after.logprob_reference_BGL, slow_logprob(policy, batch, item_BG)
    )


def test_frozen_copy_shares_the_catalogue_and_no_parameter(policy) -> None:
    reference = frozen_copy(policy)
    own = {parameter.data_ptr() for parameter in policy.tower.parameters()}
    copied = list(reference.parameters())
    assert len(copied) == len(list(policy.tower.parameters()))
    assert not own & {parameter.data_ptr() for parameter in copied}
    assert not any(parameter.requires_grad for parameter in copied)
    assert all(parameter.requires_grad for parameter in policy.tower.parameters())
    assert not reference.training
    # It grows with the catalogue: 2 GB at 1e8 items.
    assert reference.trie is policy.tower.trie


def test_rollouts_are_a_function_of_the_key_and_not_of_the_batch(
    policy, prompts
) -> None:
    reference, rows = frozen_copy(policy), [4, 1]
    whole = roll_out(
        policy, reference, prompts(EVERY), KEYS, SETTINGS, filter_seen=False
    )
    torch.manual_seed(99)
    part = roll_out(
        policy, reference, prompts(rows), KEYS[rows], SETTINGS, filter_seen=False
    )
    expected = whole.take(torch.tensor(rows))
    assert torch.equal(part.rollout.item_BG, expected.rollout.item_BG)
    for ours, theirs in (
        (part.logprob_reference_BGL, expected.logprob_reference_BGL),
        (part.rollout.key_BG, expected.rollout.key_BG),
        (part.entropy_B, expected.entropy_B),
    ):
        torch.testing.assert_close(ours, theirs)
    other = roll_out(
        policy, reference, prompts(EVERY), KEYS + 1, SETTINGS, filter_seen=False
    )
    assert not torch.equal(other.rollout.item_BG, whole.rollout.item_BG)


@pytest.mark.parametrize("kind", ["sample", "beam"])
def test_seen_items_are_not_drawn_where_they_are_filtered(
    policy, prompts, kind: str
) -> None:
    settings = replace(SETTINGS, rollouts=kind, num_rollouts=NUM_ITEMS)
    batch, reference = prompts(EVERY), frozen_copy(policy)
    plain, filtered = (
        roll_out(policy, reference, batch, KEYS, settings, filter_seen=is_filtered)
        for is_filtered in (False, True)
    )
    for prompt in EVERY:
        # Prompt n has seen items 0 to n: n + 1 slots stay empty.
        assert sorted(plain.rollout.item_BG[prompt].tolist()) == list(range(12))
        empty = [-1] * (prompt + 1)
        expected = empty + list(range(prompt + 1, NUM_ITEMS))
        assert sorted(filtered.rollout.item_BG[prompt].tolist()) == expected
        assert filtered.rollout.item_BG[prompt, -(prompt + 1) :].tolist() == empty
    is_empty_BG = filtered.rollout.item_BG < 0
    assert (filtered.logprob_reference_BGL[is_empty_BG] == 0).all()
    assert filtered.logprob_reference_BGL.isfinite().all()


def test_entropy_is_that_of_the_first_code(policy, prompts, tokens) -> None:
    batch = prompts(EVERY)
    rolled = roll_out(
        policy, frozen_copy(policy), batch, KEYS, SETTINGS, filter_seen=False
    )
    every_item = torch.arange(NUM_ITEMS).expand(NUM_PROMPTS, -1)
    share_BN = slow_logprob(policy, batch, every_item).sum(-1).exp()
    first_code = torch.from_numpy(tokens.codes_NL[:, 0]).long()
    share_BK = torch.zeros(NUM_PROMPTS, NUM_CODES).index_add(1, first_code, share_BN)
    expected = torch.special.entr(share_BK).sum(-1)
    torch.testing.assert_close(rolled.entropy_B, expected, rtol=1e-4, atol=1e-5)


def hand_rolled() -> RolledOut:
    """Two prompts, three slots, the last of prompt 1 empty; two levels."""
    levels = torch.arange(12.0).reshape(2, 3, 2) / -10
    nothing = torch.zeros(2, 3)
    return RolledOut(
        rollout=Rollout(
            item_BG=torch.tensor([[3, 0, 2], [5, 1, -1]]),
            codes_BGL=torch.zeros(2, 3, 2, dtype=torch.int64),
            logprob_BG=nothing,
            logprob_sampling_BG=nothing,
            key_BG=nothing,
        ),
        logprob_reference_BGL=levels - 1,
        entropy_B=torch.tensor([0.5, 0.25]),
    )


def test_policy_batch_asks_each_history_for_its_rollouts(prompts) -> None:
    old_SL = torch.randn(6, 2)
    batch = policy_batch(
        prompts([2, 0]).features,
        hand_rolled(),
        advantage_BG=torch.tensor([[1.0, -1.0, 0.5], [2.0, -2.0, 9.0]]),
        weight_B=torch.tensor([0.5, 2.0]),
        settings=AlignConfig(clip=0.1, kl_weight=0.3),
        scale=0.7,
        logprob_old_SL=old_SL,
    )
    assert batch.target_context_S.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.asks_ends
    assert batch.target_item_S.tolist() == [3, 0, 2, 5, 1, 0]
    terms = batch.terms
    assert terms.weight_S.tolist() == [0.5, 0.5, 0.5, 2.0, 2.0, 0.0]
    assert terms.advantage_S.tolist() == [1.0, -1.0, 0.5, 2.0, -2.0, 9.0]
    assert terms.logprob_old_SL is old_SL
    torch.testing.assert_close(
        terms.logprob_reference_SL, torch.arange(12.0).reshape(6, 2) / -10 - 1
    )
    assert (terms.scale, terms.clip, terms.kl_weight) == (0.7, 0.1, 0.3)
    assert batch.position_key_T is None
    assert not batch.trains_tables


def test_update_at_the_rollout_policy_has_ratio_one_and_moves_no_table(
    policy, prompts
) -> None:
    batch = prompts(EVERY)
    settings = replace(SETTINGS, num_rollouts=NUM_ITEMS, kl_weight=0.2)
    rolled = roll_out(
        policy, frozen_copy(policy), batch, KEYS, settings, filter_seen=True
    )
    torch.manual_seed(3)
    advantage_BG = torch.randn(NUM_PROMPTS, NUM_ITEMS)
    weight_B = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0, 1.0])
    made = policy_batch(
        batch.features, rolled, advantage_BG, weight_B, settings, scale=1 / 72
    )
    policy.train()  # dropout must stay off: the ratio compares one network
    loss, output = policy(made)
    loss.backward()
    assert isinstance(output, PolicyOutput)
    weight_BG = weight_B[:, None] * (rolled.rollout.item_BG >= 0)
    expected = -(weight_BG * advantage_BG).sum() / 72
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-5)
    assert not output.loss.requires_grad
    # Of the slots that weigh: prompt n has 11 - n items, and prompt 1 weighs nothing.
    assert output.kl_S.shape == (11 + 9 + 8 + 7 + 6,)
    assert output.kl_S.abs().max() < 1e-6
    assert (output.clip_share.item(), output.clamp_share.item()) == (0.0, 0.0)
    assert all(one.grad is None for one in policy.tables.parameters())
    assert all(one.grad is not None for one in policy.tower.parameters())
