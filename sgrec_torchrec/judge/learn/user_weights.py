"""A user's importance of each aspect: Part B of S-GRec's two-stage judge.

Reads the user alone, never a candidate, so weights are computed once per user. Two
forms answer with levels of importance per aspect: the language model with a LoRA of its
own (the paper's), and a small network over features of the history, for scale. Both are
trained by pairwise GRPO, Part A frozen: a group of G weightings is drawn, and one earns
the share of the user's trade-off pairs a_i > a_j with w . s(a_i) > w . s(a_j).

Letters: A aspects, S levels, G draws, P pairs, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.judge.ask.aspects import LEVELS, expected_score
from sgrec_torchrec.judge.ask.cases import Case, CaseReader
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.likeness import LATEST, NEWEST
from sgrec_torchrec.judge.ask.prompt import DAY_S, weighing
from sgrec_torchrec.judge.backends.language_model import load_model
from sgrec_torchrec.judge.backends.protocol import Backend
from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend
from sgrec_torchrec.judge.judge_files import JudgeFiles
from sgrec_torchrec.judge.learn.group_reward import group_policy_loss
from sgrec_torchrec.judge.learn.metrics import Judged, is_trade_off
from sgrec_torchrec.judge.learn.train_aspects import (
    Figures,
    Reward,
    reinforce_levels,
)
from sgrec_torchrec.schema import Float32Array

NUM_FEATURES = 6
Weigh = Callable[[Sequence[Case]], Float32Array]


class UserNetwork(nn.Module):
    """float32 [B, F] features of histories -> float32 [B, A, S] logits of importance.

    Starts from equal odds of all levels.
    """

    def __init__(self, num_aspects: int, hidden: int) -> None:
        super().__init__()
        self.num_aspects = num_aspects
        self.body = nn.Sequential(
            nn.Linear(NUM_FEATURES, hidden), nn.ReLU(), nn.Dropout(0.1)
        )
        self.head = nn.Linear(hidden, num_aspects * len(LEVELS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features_BF: Tensor) -> Tensor:
        """As the class says."""
        logits: Tensor = self.head(self.body(features_BF))
        return logits.view(-1, self.num_aspects, len(LEVELS))


def user_features(reader: CaseReader, case: Case) -> Float32Array:
    """What is known of a user before the request: float32 [F], of order 1."""
    items, times = reader.history(case)
    kinds = [reader.num_alike(item, items[-LATEST:]) for item in items[-NEWEST:]]
    span = (times[-1] - times[0]) / DAY_S if items and reader.has_clock else 0.0
    idle = (case.request_timestamp - times[-1]) / DAY_S if items else 0.0
    features = [
        np.log1p(len(items)) / 5,
        len(set(items)) / max(len(items), 1),
        np.mean(kinds or [0]) / LATEST,
        np.log1p(max(span, 0)) / 5,
        np.log1p(max(idle, 0)) / 5 if reader.has_clock else 0.0,
        np.log1p(len({time // DAY_S for time in times})) / 5,
    ]
    return np.array(features, dtype=np.float32)


def weights_of(logits_AS: Tensor) -> Tensor:
    """Mean importance by aspect, normalised to sum 1: float32 [..., A]."""
    level_S = torch.arange(len(LEVELS), dtype=torch.float32, device=logits_AS.device)
    return _normalised(logits_AS.float().softmax(-1) @ level_S)


def pairwise_reward(judged: Judged) -> Reward | None:
    """Drawn levels int64 [A, G] -> share of the case's trade-off pairs, [1, G].

    None where the case has no such pair, and so nothing to teach.
    """
    score_CA = judged.score_CA
    gaps = [
        score_CA[pair.better] - score_CA[pair.worse]
        for pair in judged.case.preferences
        if is_trade_off(score_CA, pair.better, pair.worse)
    ]
    if not gaps:
        return None
    gap_PA = torch.from_numpy(np.stack(gaps))

    def reward(drawn_AG: Tensor) -> Tensor:
        weight_GA = _normalised(drawn_AG.cpu().float().T)
        won_PG = gap_PA @ weight_GA.T > 0
        return won_PG.float().mean(0, keepdim=True).to(drawn_AG.device)

    return reward


def train_network(
    judged: Sequence[Judged], reader: CaseReader, settings: JudgeConfig
) -> tuple[UserNetwork, list[Figures]]:
    """The small form. Seconds on a CPU; the figures are the reward and KL by pass.

    Raises:
        ValueError: where no case has a trade-off pair.
    """
    taught = [(one, pairwise_reward(one)) for one in judged]
    open_cases = [(one, reward) for one, reward in taught if reward is not None]
    if not open_cases:
        raise ValueError(
            "no pair has an aspect trade-off: there are no weights to learn"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = UserNetwork(len(reader.aspects), settings.weights_hidden)
        return network, _fit(network, open_cases, reader, settings)


def _fit(
    network: UserNetwork,
    open_cases: Sequence[tuple[Judged, Reward]],
    reader: CaseReader,
    settings: JudgeConfig,
) -> list[Figures]:
    features_BF = torch.from_numpy(
        np.stack([user_features(reader, one.case.case) for one, _ in open_cases])
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.weights_lr)
    noise = torch.Generator().manual_seed(settings.seed)
    start_AS = torch.zeros(network.num_aspects, len(LEVELS))
    log = []
    for _ in range(settings.weights_passes):
        network.train()
        figures: list[Figures] = []
        order = torch.randperm(len(open_cases), generator=noise)
        for rows in torch.split(order, settings.weights_batch_size):
            losses = []
            for row, logits_AS in zip(
                rows.tolist(), network(features_BF[rows]), strict=True
            ):
                loss, figure = group_policy_loss(
                    logits_AS,
                    start_AS,
                    open_cases[row][1],
                    num_draws=settings.weights_draws,
                    kl_weight=settings.weights_kl_weight,
                    generator=noise,
                )
                losses.append(loss)
                figures.append(figure)
            optimizer.zero_grad()
            torch.autograd.backward(torch.stack(losses).mean())
            optimizer.step()
        log.append(
            {name: float(np.mean([f[name] for f in figures])) for name in figures[0]}
        )
    network.eval()
    return log


def llm_weights(
    backend: Backend, reader: CaseReader, cases: Sequence[Case]
) -> Float32Array:
    """float32 [len(cases), A] of a judge whose model has learned to weigh."""
    prompts = [
        reader.prompt(replace(case, items=()), weighing(reader.aspects))
        for case in cases
    ]
    parts = [expected_score(one[0]) for one in backend.rate(prompts, LEVELS)]
    stacked = np.stack(parts) if parts else np.zeros((0, len(reader.aspects)))
    weights: Float32Array = _normalised(torch.from_numpy(stacked)).numpy()
    return weights.astype(np.float32)


@torch.no_grad()
def network_weights(
    network: UserNetwork, reader: CaseReader, cases: Sequence[Case]
) -> Float32Array:
    """float32 [len(cases), A], rows sum to 1."""
    if not cases:
        return np.zeros((0, network.num_aspects), dtype=np.float32)
    features = np.stack([user_features(reader, case) for case in cases])
    weights: Float32Array = weights_of(network(torch.from_numpy(features))).numpy()
    return weights


def save_network(network: UserNetwork, path: Path) -> None:
    """As safetensors."""
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)


def load_network(path: Path, num_aspects: int) -> UserNetwork:
    """What ``save_network`` wrote.

    Raises:
        ValueError: naming the file, where it holds another number of aspects.
    """
    tensors = load_file(path)
    hidden = tensors["body.0.weight"].shape[0]
    network = UserNetwork(num_aspects, hidden)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} is of another judge: {error}") from None
    return network.eval()


def reinforce_weights(
    model: Any,
    chat: Chat,
    judged: Sequence[Judged],
    reader: CaseReader,
    settings: JudgeConfig,
) -> list[Figures]:
    """The paper's form: a LoRA of its own on the prompt that asks of the user alone.

    ``model`` carries a fresh adapter over the merged judge of aspects; with the adapter
    off it is the reference.

    Raises:
        ValueError: where no case has a trade-off pair.
    """
    taught = ((one.case, pairwise_reward(one)) for one in judged)
    rewards = {one.case: reward for one, reward in taught if reward is not None}
    open_cases = [one.case for one in judged if one.case.case in rewards]
    if not open_cases:
        raise ValueError(
            "no pair has an aspect trade-off: there are no weights to learn"
        )
    alone = weighing(reader.aspects)
    return reinforce_levels(
        model,
        chat,
        open_cases,
        lambda one: reader.prompt(replace(one.case, items=()), alone),
        lambda one: rewards[one.case],
        model.disable_adapter,
        settings,
        "weights",
    )


def _normalised(importance: Tensor) -> Tensor:
    """Rows over A to sum 1; equal weights where nothing matters."""
    total = importance.sum(-1, keepdim=True)
    equal = torch.full_like(importance, 1.0 / importance.shape[-1])
    return torch.where(total > 0, importance / total.clamp(min=1e-9), equal)


def weigher(files: JudgeFiles, reader: CaseReader) -> Weigh:
    """Cases -> float32 [len, A], rows sum to 1; a user at one time is asked once.

    Memory: some hundred bytes a user.
    """
    weigh = _network(files, reader) if files.form == "network" else _llm(files, reader)
    known: dict[tuple[int, int], Float32Array] = {}

    def cached(cases: Sequence[Case]) -> Float32Array:
        new = [case for case in cases if (case.user, case.as_of) not in known]
        for case, weight_A in zip(new, weigh(new), strict=True):
            known[case.user, case.as_of] = weight_A
        rows = [known[case.user, case.as_of] for case in cases]
        empty = np.zeros((0, len(reader.aspects)), dtype=np.float32)
        return np.stack(rows) if rows else empty

    return cached


def _network(files: JudgeFiles, reader: CaseReader) -> Weigh:
    network = load_network(files.network, len(reader.aspects))
    return lambda cases: network_weights(network, reader, cases)


def _llm(files: JudgeFiles, reader: CaseReader) -> Weigh:
    from peft import PeftModel

    model, tokenizer = load_model(str(files.model))
    weighing = PeftModel.from_pretrained(
        model, str(files.weights_adapter), use_safetensors=True
    )
    backend = TransformersBackend(
        weighing.merge_and_unload(), tokenizer, str(files.weights_adapter)
    )
    return lambda cases: llm_weights(backend, reader, cases)
