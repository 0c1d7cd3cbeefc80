"""Part B: weights of users, learned from the pairs that have a trade-off."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.judge.ask.aspects import expected_score
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import PromptSettings, weighing
from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend
from sgrec_torchrec.judge.judge_files import open_judge
from sgrec_torchrec.judge.learn.labels import LabelledCase, Preference
from sgrec_torchrec.judge.learn.metrics import Judged
from sgrec_torchrec.judge.learn.train_aspects import with_lora
from sgrec_torchrec.judge.learn.user_weights import (
    UserNetwork,
    llm_weights,
    load_network,
    network_weights,
    pairwise_reward,
    reinforce_weights,
    save_network,
    train_network,
    user_features,
    weigher,
    weights_of,
)

DAY_S = 24 * 3600


def judged_of(
    case: Case, said: list[list[int]], pairs: tuple[tuple[int, int], ...]
) -> Judged:
    """The judge is certain of the levels ``said`` (1 to 5)."""
    labelled = LabelledCase(
        case=dataclasses.replace(case, items=tuple(range(len(said)))),
        sources=("next",) * len(said),
        levels_CA=np.array(said, dtype=np.int8),
        evidence=tuple(("",) * len(said[0]) for _ in said),
        preferences=tuple(Preference(*pair) for pair in pairs),
        is_held_out=False,
    )
    equal = np.full(len(said[0]), 1 / len(said[0]), dtype=np.float32)
    return Judged(
        case=labelled,
        probability_CAS=np.eye(5, dtype=np.float32)[np.array(said) - 1],
        weight_A=equal,
    )


@pytest.fixture(scope="module")
def taught(reader, next_case) -> Callable[..., list[Judged]]:
    """taught(aspect): users who prefer what is better in that aspect, worse in one
    other, which differs from user to user.
    """

    def make(aspect: int, num_users: int = 42) -> list[Judged]:
        judged = []
        for user in range(num_users):
            better, worse = [3] * 4, [3] * 4
            other = (aspect + 1 + user % 3) % 4
            better[aspect], worse[other] = 4, 4
            case = next_case(reader, user, (0,))
            judged.append(judged_of(case, [better, worse], ((0, 1),)))
        return judged

    return make


def test_weights_are_not_negative_and_sum_to_one() -> None:
    logits = torch.randn(50, 4, 5, generator=torch.Generator().manual_seed(0)) * 9
    weights = weights_of(logits)
    assert weights.shape == (50, 4)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))


def test_weights_by_hand() -> None:
    sure = torch.full((3, 5), -1e9)
    sure[0, 4] = sure[1, 2] = sure[2, 0] = 0.0  # importance 4, 2 and 0 of 4
    torch.testing.assert_close(weights_of(sure), torch.tensor([4 / 6, 2 / 6, 0.0]))


def test_weights_are_equal_where_nothing_matters() -> None:
    none = torch.full((4, 5), -torch.inf)
    none[:, 0] = 0.0
    torch.testing.assert_close(weights_of(none), torch.full((4,), 0.25))


def test_pairwise_reward_by_hand(reader, next_case) -> None:
    case = next_case(reader, 0, (0,))
    # Scores 1, 0 / 0, 1 / 1, 1: pairs 0-1 and 1-0 are open, 2-0 is won by any weights.
    one = judged_of(case, [[5, 1], [1, 5], [5, 5]], ((0, 1), (2, 0)))
    reward = pairwise_reward(one)
    drawn_AG = torch.tensor([[4, 0, 2, 0, 1], [0, 4, 2, 0, 3]])
    # Importance of the first aspect above, below, equal, none at all, below.
    torch.testing.assert_close(reward(drawn_AG), torch.tensor([[1.0, 0, 0, 0, 0]]))
    both = judged_of(case, [[5, 1], [1, 5], [5, 2]], ((0, 1), (1, 2)))
    # 1-2: gap (-1, .75): won where importance is above 4/3 of the first one's.
    torch.testing.assert_close(
        pairwise_reward(both)(torch.tensor([[4, 0, 3, 2], [0, 4, 3, 3]])),
        torch.tensor([[0.5, 0.5, 0.0, 0.5]]),
    )


def test_no_trade_off_no_reward(reader, next_case) -> None:
    case = next_case(reader, 0, (0,))
    better = judged_of(case, [[5, 5], [1, 1]], ((0, 1),))
    assert pairwise_reward(better) is None
    assert pairwise_reward(judged_of(case, [[5, 1], [1, 5]], ())) is None


@pytest.mark.long
@pytest.mark.parametrize("aspect", [0, 2])
def test_network_learns_the_aspect_that_decides(reader, taught, aspect: int) -> None:
    judged = taught(aspect)
    network, log = train_network(judged, reader, JudgeConfig())
    assert log[-1]["reward"] > log[0]["reward"] + 0.1
    cases = [one.case.case for one in judged]
    weight_EA = network_weights(network, reader, cases)
    assert (weight_EA.argmax(1) == aspect).all()
    assert weight_EA[:, aspect].mean() > 0.3
    np.testing.assert_allclose(weight_EA.sum(1), 1, rtol=1e-5)
    assert weight_EA.dtype == np.float32


@pytest.mark.long
def test_network_tells_users_apart(make_split) -> None:
    # Users of many events go by the first aspect, those of few by the second.
    users = [[(0, 60 * n) for n in range(80 if u % 2 else 2)] for u in range(40)]
    split = make_split(users, [len(events) for events in users], ["Lamp"] * 5)
    reader = CaseReader(split, PromptSettings(max_history=20))
    judged = []
    for user, events in enumerate(users):
        at = Case(user=user, as_of=len(events) - 1, request_timestamp=9999, items=())
        pair = ((0, 1),) if user % 2 else ((1, 0),)
        judged.append(judged_of(at, [[5, 1, 3, 3], [1, 5, 3, 3]], pair))
    settings = JudgeConfig(weights_passes=40, weights_lr=1e-2)
    network, _ = train_network(judged, reader, settings)
    weight_EA = network_weights(network, reader, [one.case.case for one in judged])
    is_first = weight_EA[:, 0] > weight_EA[:, 1]
    assert is_first.tolist() == [user % 2 == 1 for user in range(40)]


def test_a_set_without_a_trade_off_is_refused(reader, next_case, load_tiny) -> None:
    judged = [
        judged_of(next_case(reader, user, (0,)), [[5] * 4, [1] * 4], ((0, 1),))
        for user in range(3)
    ]
    with pytest.raises(ValueError, match="no pair has an aspect trade-off"):
        train_network(judged, reader, JudgeConfig())
    model, tokenizer = load_tiny()
    with pytest.raises(ValueError, match="no pair has an aspect trade-off"):
        reinforce_weights(model, Chat.of(tokenizer), judged, reader, None)


def test_same_seed_same_network_and_no_trace_in_the_global_generator(
    reader, taught
) -> None:
    settings = JudgeConfig(weights_passes=2)
    state = torch.get_rng_state()
    logs = [train_network(taught(1), reader, settings)[1] for _ in range(2)]
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert logs[0] == logs[1]
    other = dataclasses.replace(settings, seed=3)
    assert train_network(taught(1), reader, other)[1] != logs[0]


def test_a_new_network_weighs_all_aspects_alike(reader, next_case) -> None:
    network = UserNetwork(4, 8).eval()
    cases = [next_case(reader, user, ()) for user in range(3)]
    np.testing.assert_allclose(network_weights(network, reader, cases), 0.25)
    assert network_weights(network, reader, []).shape == (0, 4)


def test_features_by_hand(make_split) -> None:
    events = [(0, 0), (0, DAY_S), (5, DAY_S + 9), (1, 4 * DAY_S), (7, 9 * DAY_S)]
    titles = [f"T{n}" for n in range(10)]
    split = make_split([events], [5], titles)
    reader = CaseReader(split, PromptSettings(max_history=20))
    case = Case(user=0, as_of=4, request_timestamp=6 * DAY_S, items=(0,))
    # Kinds: 0 lamp/oak, 5 lamp/steel, 1 chair/oak. Alike among the four (0, 0, 5, 1):
    # 0: all 4; 0: 4; 5: itself and the lamps, 3; 1: itself and the oaks, 3.
    expected = [
        np.log1p(4) / 5,
        3 / 4,
        (4 + 4 + 3 + 3) / 4 / 5,
        np.log1p(4) / 5,  # days from the first to the last choice
        np.log1p(2) / 5,  # days since
        np.log1p(3) / 5,  # days 0, 1 and 4
    ]
    np.testing.assert_allclose(user_features(reader, case), expected, rtol=1e-6)
    none = dataclasses.replace(case, as_of=0)
    assert not user_features(reader, none).any()
    ordinal = CaseReader(
        make_split([events], [5], titles, has_clock=False),
        PromptSettings(max_history=20),
    )
    assert user_features(ordinal, case)[3:5].tolist() == [0, 0]


def test_network_survives_writing_and_reading(reader, taught, tmp_path: Path) -> None:
    network, _ = train_network(taught(1), reader, JudgeConfig(weights_passes=2))
    path = tmp_path / "network.safetensors"
    save_network(network, path)
    cases = [one.case.case for one in taught(1)]
    np.testing.assert_array_equal(
        network_weights(load_network(path, 4), reader, cases),
        network_weights(network, reader, cases),
    )
    with pytest.raises(ValueError, match=r"network.safetensors is of another judge"):
        load_network(path, 3)


def test_llm_weights_are_the_normalised_scores(tiny, reader, next_case) -> None:
    cases = [next_case(reader, user, (3, 4)) for user in range(3)]
    backend = TransformersBackend(*tiny, "tiny")
    weight_EA = llm_weights(backend, reader, cases)
    assert weight_EA.dtype == np.float32
    np.testing.assert_allclose(weight_EA.sum(1), 1, rtol=1e-5)
    alone = dataclasses.replace(cases[1], items=())  # the user alone is shown
    prompt = reader.prompt(alone, weighing(reader.aspects))
    score_A = expected_score(backend.rate([prompt], "12345")[0][0])
    np.testing.assert_allclose(weight_EA[1], score_A / score_A.sum(), rtol=1e-4)
    assert llm_weights(backend, reader, []).shape == (0, 4)


def test_llm_learns_the_aspect_that_decides(
    load_tiny, reader, taught, fast_training
) -> None:
    settings = fast_training(
        lora_rank=8, grpo_steps=30, grpo_lr=2e-2, num_draws=32, kl_weight=0.0
    )
    model, tokenizer = load_tiny()
    model = with_lora(model, settings)
    judged = taught(2, num_users=4)
    cases = [one.case.case for one in judged]
    before = llm_weights(TransformersBackend(model, tokenizer, "-"), reader, cases)
    log = reinforce_weights(model, Chat.of(tokenizer), judged, reader, settings)
    after = llm_weights(TransformersBackend(model, tokenizer, "-"), reader, cases)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert after[:, 2].mean() > before[:, 2].mean() + 0.15


def test_a_user_at_one_time_is_weighed_once(
    tiny_judge: Path, reader, next_case, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sgrec_torchrec.judge.learn import user_weights as module

    asked = []
    real = module.network_weights

    def spied(network, reader, cases):
        asked.extend((case.user, case.as_of) for case in cases)
        return real(network, reader, cases)

    monkeypatch.setattr(module, "network_weights", spied)
    weigh = weigher(open_judge(tiny_judge), reader)
    first, second = next_case(reader, 1, (0, 1)), next_case(reader, 2, (0,))
    earlier = dataclasses.replace(first, as_of=5)
    weight_EA = weigh([first, second])
    again = weigh([second, dataclasses.replace(first, items=(9,)), earlier])
    assert len(asked) == len(set(asked)) == 3
    np.testing.assert_array_equal(again[:2], weight_EA[::-1])
    assert weigh([]).shape == (0, 4)
