"""A tree gives every question what it would get as a prompt of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.judge.ask.aspects import LEVELS
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.judge.ask.token_tree import IGNORED, Branch, TokenTree, TreeBatch
from sgrec_torchrec.judge.learn.train_aspects import answer_loss

FORK = [
    Branch(-1, (10, 11)),
    Branch(0, (20,)),
    Branch(1, (30, 31)),
    Branch(2, (40,), is_answer=True),
    Branch(0, (50,)),
]
"""10 11 --+-- 20 -- 30 31 -- 40 (answer)
           +-- 50"""


def probability_alone(model: Any, chat: Chat, text: str) -> torch.Tensor:
    """Probabilities of the levels after one prompt, by the model's plain forward."""
    ids = torch.tensor([chat.encode(text)])
    with torch.no_grad():
        logits_V = model(input_ids=ids).logits[0, -1]
    return logits_V[chat.level_tokens(LEVELS)].softmax(-1)


def probabilities_by_tree(
    model: Any, chat: Chat, prompts: list[UserPrompt]
) -> list[torch.Tensor]:
    """The same from one batch of trees: a float32 [questions, S] a prompt."""
    pairs = [chat.question_tree(prompt) for prompt in prompts]
    batch = TreeBatch.of([tree for tree, _ in pairs], chat.padding)
    with torch.no_grad():
        logits_BTV = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
        ).logits
    levels = chat.level_tokens(LEVELS)
    return [
        logits_BTV[row, ends][:, levels].softmax(-1)
        for row, (_, ends) in enumerate(pairs)
    ]


def assert_equal_alone(
    model: Any, chat: Chat, prompts: list[UserPrompt], tolerance: float
) -> None:
    by_tree = probabilities_by_tree(model, chat, prompts)
    for prompt, found_QS in zip(prompts, by_tree, strict=True):
        alone = [probability_alone(model, chat, t) for t in chat.full_texts(prompt)]
        assert len(found_QS) == len(alone) > 0
        torch.testing.assert_close(found_QS, torch.stack(alone), rtol=0, atol=tolerance)
        # The questions differ, so a tree that mixed them up would be seen.
        if len(alone) > 1:
            assert (found_QS[0] - found_QS[1]).abs().max() > 10 * tolerance


def test_layout_by_hand() -> None:
    tree = TokenTree.of(FORK)
    assert len(tree) == 7
    assert tree.token_T.tolist() == [10, 11, 20, 30, 31, 40, 50]
    assert tree.position_T.tolist() == [0, 1, 2, 3, 4, 5, 2]
    assert tree.branch_T.tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert tree.end_R.tolist() == [1, 2, 4, 5, 6]
    assert tree.label_T.tolist() == [IGNORED] * 5 + [40, IGNORED]
    assert tree.mask_TT().int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],  # 50 sees its ancestors and itself, not its sister
    ]


@pytest.mark.parametrize(
    ("branches", "index"),
    [
        ([Branch(-1, ())], 0),
        ([Branch(-1, (1,)), Branch(0, ())], 1),
        ([Branch(0, (1,))], 0),
        ([Branch(-1, (1,)), Branch(2, (2,)), Branch(0, (3,))], 1),
    ],
)
def test_a_branch_that_hangs_in_the_air_is_refused(
    branches: list[Branch], index: int
) -> None:
    with pytest.raises(ValueError, match=f"branch {index}: empty, or before its"):
        TokenTree.of(branches)


def test_padding_attends_to_itself_alone_and_has_no_label() -> None:
    short, long = TokenTree.of([Branch(-1, (7,), is_answer=True)]), TokenTree.of(FORK)
    batch = TreeBatch.of([short, long], padding_token=99)
    assert batch.input_ids.tolist()[0] == [7, *[99] * 6]
    assert batch.labels.tolist()[0] == [7, *[IGNORED] * 6]
    assert batch.attention_mask.shape == (2, 1, 7, 7)
    np.testing.assert_array_equal(batch.attention_mask[0, 0], np.eye(7, dtype=bool))
    torch.testing.assert_close(batch.attention_mask[1, 0], long.mask_TT())
    assert batch.position_ids.tolist()[1] == long.position_T.tolist()


def test_real_weights_say_of_each_question_what_they_say_of_it_alone(
    smollm2_folder: Path, hand_prompt: Callable[..., UserPrompt]
) -> None:
    from sgrec_torchrec.judge.backends.language_model import load_model

    model, tokenizer = load_model(str(smollm2_folder), torch.device("cpu"))
    longer = hand_prompt("History: a lamp; an oak desk; a rug.\n", ("Candidate: a\n",))
    assert_equal_alone(model, Chat.of(tokenizer), [hand_prompt(), longer], 1e-4)


@pytest.mark.parametrize(
    ("num_candidates", "num_questions"), [(1, 1), (1, 4), (2, 2), (5, 3)]
)
def test_tree_of_any_shape_equals_its_prompts(
    tiny, hand_prompt, num_candidates: int, num_questions: int
) -> None:
    model, tokenizer = tiny
    prompt = hand_prompt(
        candidates=tuple(f"Candidate:{' no' * n}\n" for n in range(num_candidates)),
        questions=tuple(f"Rate {'very ' * n}well." for n in range(num_questions)),
    )
    assert_equal_alone(model, Chat.of(tokenizer), [prompt], 1e-5)


def test_padded_batch_and_prompts_without_a_candidate_equal_their_own(
    tiny, hand_prompt
) -> None:
    model, tokenizer = tiny
    prompts = [
        hand_prompt(candidates=("",)),
        hand_prompt("History:" + " a lamp," * 20 + "\n"),
        hand_prompt("-\n", ("Candidate: x\n",), ("Rate.",)),
    ]
    assert_equal_alone(model, Chat.of(tokenizer), prompts, 1e-5)


def test_a_candidate_changes_no_other_candidates_answer(tiny, hand_prompt) -> None:
    model, tokenizer = tiny
    chat = Chat.of(tokenizer)
    first = hand_prompt(candidates=("Candidate: a desk\n", "Candidate: a rug\n"))
    other = hand_prompt(candidates=("Candidate: a desk\n", "Candidate: the sun\n"))
    (ours,), (theirs,) = (
        probabilities_by_tree(model, chat, [p]) for p in (first, other)
    )
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=1e-6)
    assert (ours[2:] - theirs[2:]).abs().max() > 1e-4


def single_answers(
    chat: Chat, prompt: UserPrompt, answers: dict[tuple[int, int], str]
) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each prompt with its answer, laid out by hand."""
    texts = iter(chat.full_texts(prompt))
    made = []
    for place in range(len(prompt.candidates)):
        for nth in range(len(prompt.questions)):
            asked = list(chat.encode(next(texts)))
            reply = [*chat.encode(answers[place, nth]), chat.tokenizer.eos_token_id]
            made.append((asked + reply, [IGNORED] * len(asked) + reply))
    return made


def test_loss_and_gradients_of_a_tree_are_those_of_its_prompts(
    load_tiny, hand_prompt
) -> None:
    prompt = hand_prompt()
    answers = {(0, 0): "4", (0, 1): "1", (1, 0): "2", (1, 1): '{"level": 5}'}
    model, tokenizer = load_tiny()
    chat = Chat.of(tokenizer)
    tree, _ = chat.question_tree(prompt, answers)
    loss = answer_loss(model, TreeBatch.of([tree], chat.padding))
    loss.backward()
    alone_model, _ = load_tiny()
    alone = single_answers(chat, prompt, answers)
    num_tokens = sum(label != IGNORED for _, labels in alone for label in labels)
    total = torch.zeros(())
    for ids, labels in alone:
        kept = sum(label != IGNORED for label in labels)
        mean = alone_model(
            input_ids=torch.tensor([ids]), labels=torch.tensor([labels])
        ).loss
        total = total + mean * kept / num_tokens
    total.backward()
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    theirs = dict(alone_model.named_parameters())
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
        torch.testing.assert_close(weight.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


def test_answer_loss_of_a_padded_batch_is_transformers_own(tiny, hand_prompt) -> None:
    model, tokenizer = tiny
    chat = Chat.of(tokenizer)
    trees = [
        chat.question_tree(hand_prompt(), {(0, 0): "4", (1, 1): "yes it is"})[0],
        chat.question_tree(hand_prompt("-\n"), {(1, 0): "2"})[0],
    ]
    batch = TreeBatch.of(trees, chat.padding)
    with torch.no_grad():
        theirs = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
        ).loss
        ours = answer_loss(model, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
