"""Labelled cases -> a judge of aspects: LoRA by supervision, then by GRPO.

Part A of S-GRec's two-stage judge. Both stages read token trees, so a step learns all
candidates and aspects of a user at the cost of one forward:

- supervised: cross-entropy on the level after each question, and now and then on a
  candidate's written answer (evidence and levels as JSON);
- GRPO (Shao et al. 2024, arXiv 2402.03300): G levels are drawn for each question from
  the judge's own distribution; reward = 1[exact] + 1 - |level - label| / (S - 1), less
  what the level earns on labels at large, so that only knowledge of the case is worth
  something; standardised over the group; KL to the supervised policy. A level is one
  token and the distribution over levels is known whole, so the group costs nothing
  beyond the one forward, the KL is exact, and, with one update a draw, the ratio is 1:
  no clipping.

Letters: C candidates, Q questions, S levels, G draws.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgrec_torchrec.config import JudgeConfig
from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.distributed.schedule import warmup_cosine
from sgrec_torchrec.judge.ask.aspects import LEVELS
from sgrec_torchrec.judge.ask.cases import CaseReader
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import UserPrompt, rating, writing
from sgrec_torchrec.judge.ask.token_tree import IGNORED, TokenTree, TreeBatch
from sgrec_torchrec.judge.backends.transformers_backend import level_logits
from sgrec_torchrec.judge.learn.group_reward import (
    chance_reward,
    group_policy_loss,
    ordinal_reward,
)
from sgrec_torchrec.judge.learn.labels import LabelledCase

Figures = dict[str, float]
Reward = Callable[[Tensor], Tensor]
POLICY, REFERENCE = "default", "reference"
WARMUP_SHARE = 0.05
"""Of the updates; the rate then falls."""
WRITTEN_EVERY = 4
"""Every so many cases also teach a written answer, for one candidate."""


def with_lora(model: Any, settings: JudgeConfig) -> Any:
    """The model with a fresh LoRA on all linear maps of its uppermost layers."""
    from peft import LoraConfig, get_peft_model

    num_layers = model.config.num_hidden_layers
    first = int(num_layers * (1 - settings.trained_share))
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=linear_names(model),
        layers_to_transform=list(range(first, num_layers)),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return get_peft_model(model, lora)


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of the decoder's linear maps, without the head."""
    decoder = model.get_decoder()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in decoder.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )


def supervised_tree(one: LabelledCase, reader: CaseReader, chat: Chat) -> TokenTree:
    """Levels of all candidates, as answers to learn."""
    prompt = reader.prompt(one.case, rating(reader.aspects))
    num_candidates, num_questions = one.levels_CA.shape
    answers = {
        (place, nth): LEVELS[one.levels_CA[place, nth] - 1]
        for place in range(num_candidates)
        for nth in range(num_questions)
    }
    return chat.question_tree(prompt, answers)[0]


def written_tree(
    one: LabelledCase, place: int, reader: CaseReader, chat: Chat
) -> TokenTree:
    """The written answer for one candidate, as an answer to learn."""
    only = replace(one.case, items=(one.case.items[place],))
    prompt = reader.prompt(only, writing(reader.aspects))
    answers = {(0, 0): one.answer(place).to_json(reader.aspects)}
    return chat.question_tree(prompt, answers)[0]


def answer_loss(model: Any, batch: TreeBatch) -> Tensor:
    """Mean cross-entropy of the batch's answer tokens: what TRL's SFT minimises.

    The vocabulary is scored at answers alone. Differentiable.
    """
    device = model.device
    hidden_BTD = model.get_decoder()(
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        use_cache=False,
    ).last_hidden_state
    target_BT = batch.labels[:, 1:].to(device)
    is_asked_BT = target_BT != IGNORED
    logits_AV = model.get_output_embeddings()(hidden_BTD[:, :-1][is_asked_BT])
    return torch.nn.functional.cross_entropy(logits_AV.float(), target_BT[is_asked_BT])


def supervise(
    model: Any,
    chat: Chat,
    cases: Sequence[LabelledCase],
    reader: CaseReader,
    settings: JudgeConfig,
) -> list[Figures]:
    """Train the LoRA on labels.

    Returns:
        The loss by update.
    """

    def loss_of(one: LabelledCase, turn: int) -> tuple[Tensor, Figures]:
        trees = [supervised_tree(one, reader, chat)]
        place = turn // WRITTEN_EVERY % len(one.case.items)
        if turn % WRITTEN_EVERY == 0 and all(one.evidence[place]):
            trees.append(written_tree(one, place, reader, chat))
        losses = [
            answer_loss(model, TreeBatch.of([tree], chat.padding)) for tree in trees
        ]
        figures = {"loss": float(losses[0].detach())}
        if len(losses) > 1:
            figures["written_loss"] = float(losses[1].detach())
        return torch.stack(losses).sum(), figures

    num_updates = max(round(settings.sft_epochs * len(cases) / settings.batch_size), 1)
    num_updates = min(num_updates, settings.sft_updates or num_updates)
    return train_cases(
        model, cases, loss_of, num_updates, settings.sft_lr, settings, "supervised"
    )


def reinforce(
    model: Any,
    chat: Chat,
    cases: Sequence[LabelledCase],
    reader: CaseReader,
    settings: JudgeConfig,
    supervised: Path,
) -> list[Figures]:
    """GRPO on from the supervised adapter, which lies in the folder ``supervised``.

    Returns:
        Mean reward (0: as good as chance), KL to the supervised policy and the share of
        groups that teach, by update.
    """
    model.load_adapter(str(supervised), adapter_name=REFERENCE)
    model.set_adapter(POLICY)

    label_NA = torch.from_numpy(np.concatenate([one.levels_CA for one in cases])) - 1
    chance_AS = chance_reward(label_NA.long(), len(LEVELS))

    def reward_of(one: LabelledCase) -> Reward:
        label_Q = torch.from_numpy(one.levels_CA.reshape(-1)).long() - 1
        chance_QS = chance_AS.repeat(len(one.levels_CA), 1)

        def reward(drawn_QG: Tensor) -> Tensor:
            earned_QG = ordinal_reward(drawn_QG, label_Q, len(LEVELS))
            return earned_QG - chance_QS.to(drawn_QG.device).gather(1, drawn_QG)

        return reward

    return reinforce_levels(
        model,
        chat,
        cases,
        lambda one: reader.prompt(one.case, rating(reader.aspects)),
        reward_of,
        lambda: _speaking_as(model, REFERENCE),
        settings,
        "GRPO",
    )


def reinforce_levels(
    model: Any,
    chat: Chat,
    cases: Sequence[LabelledCase],
    prompt_of: Callable[[LabelledCase], UserPrompt],
    reward_of: Callable[[LabelledCase], Reward],
    as_reference: Callable[[], AbstractContextManager[Any]],
    settings: JudgeConfig,
    description: str,
) -> list[Figures]:
    """GRPO over the levels that answer a prompt: what both parts of the judge learn by.

    Args:
        reward_of: as ``group_policy_loss`` takes it.
        as_reference: inside it the model answers as the policy to stay near.

    Returns:
        Mean reward, KL and the share of groups that teach, by update.
    """
    noise = torch.Generator().manual_seed(settings.seed)
    level_tokens = chat.level_tokens(LEVELS)

    def loss_of(one: LabelledCase, turn: int) -> tuple[Tensor, Figures]:
        del turn
        tree, ends = chat.question_tree(prompt_of(one))
        batch = TreeBatch.of([tree], chat.padding)
        with torch.no_grad(), as_reference():
            (reference_QS,) = level_logits(model, batch, [ends], level_tokens)
        (logits_QS,) = level_logits(model, batch, [ends], level_tokens)
        return group_policy_loss(
            logits_QS,
            reference_QS,
            reward_of(one),
            num_draws=settings.num_draws,
            kl_weight=settings.kl_weight,
            generator=noise,
        )

    return train_cases(
        model,
        cases,
        loss_of,
        settings.grpo_steps,
        settings.grpo_lr,
        settings,
        description,
    )


@contextmanager
def _speaking_as(model: Any, adapter: str) -> Iterator[None]:
    model.set_adapter(adapter)
    try:
        yield
    finally:
        model.set_adapter(POLICY)


def train_cases(
    model: Any,
    cases: Sequence[LabelledCase],
    loss_of: Callable[[LabelledCase, int], tuple[Tensor, Figures]],
    num_updates: int,
    lr: float,
    settings: JudgeConfig,
    description: str,
) -> list[Figures]:
    """AdamW over the adapter, cases in seeded order; a short warm-up, a cosine to 0."""
    if not cases:
        raise ValueError("no cases to learn from: all label users are held out")
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    num_warmup = int(num_updates * WARMUP_SHARE)

    def rate(done: int) -> float:
        falling = warmup_cosine(done, 0, num_updates)
        return falling * min((done + 1) / (num_warmup + 1), 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    shuffle = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    log = []
    turn, device = 0, trained[0].device.type
    model.train()
    for _ in progress(range(num_updates), description=description, unit="update"):
        figures: list[Figures] = []
        for _ in range(settings.batch_size):
            order = order or torch.randperm(len(cases), generator=shuffle).tolist()
            with torch.autocast(device, torch.bfloat16, enabled=settings.bf16):
                loss, figure = loss_of(cases[order.pop()], turn)
            torch.autograd.backward(loss / settings.batch_size)
            figures.append(figure)
            turn += 1
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log.append(_mean(figures))
    model.eval()
    return log


def _mean(figures: list[Figures]) -> Figures:
    names = {name for one in figures for name in one}
    return {
        name: statistics.fmean(one[name] for one in figures if name in one)
        for name in sorted(names)
    }
