"""Prompts as tokens: the words of ``prompt`` inside a model's chat template."""

from dataclasses import dataclass
from typing import Any

from sgrec_torchrec.judge.ask.prompt import SYSTEM, UserPrompt
from sgrec_torchrec.judge.ask.token_tree import Branch, TokenTree

_HERE = "@@USER-TURN@@"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A tokenizer and the words that its template puts around a user's turn."""

    tokenizer: Any
    before: str
    after: str

    @staticmethod
    def of(tokenizer: Any) -> "Chat":
        """Take the template apart.

        Where it has no system turn, the user's begins with those words.

        Raises:
            ValueError: where the template hides the user's turn.
        """
        from jinja2 import TemplateError

        turns = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": _HERE},
        ]
        try:
            text = _render(tokenizer, turns)
        except TemplateError:
            text = ""
        if SYSTEM not in text:  # refused, or silently dropped
            turns = [{"role": "user", "content": f"{SYSTEM}\n\n{_HERE}"}]
            text = _render(tokenizer, turns)
        before, here, after = text.partition(_HERE)
        if not here:
            raise ValueError("the chat template does not show the user's turn")
        return Chat(tokenizer=tokenizer, before=before, after=after)

    @property
    def padding(self) -> int:
        """A token for places that nothing attends to."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text, nothing added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def level_tokens(self, levels: tuple[str, ...]) -> list[int]:
        """The token of each level.

        Raises:
            ValueError: where a level is not one token of this tokenizer.
        """
        coded = [self.encode(level) for level in levels]
        if any(len(one) != 1 for one in coded) or len(set(coded)) < len(coded):
            raise ValueError(
                f"the levels {levels} are not one token each here: name another model"
            )
        return [one[0] for one in coded]

    def full_texts(self, prompt: UserPrompt) -> list[str]:
        """The prompts in full, as a server takes them."""
        return [self.before + text + self.after for text in prompt.texts()]

    def question_tree(
        self,
        prompt: UserPrompt,
        answers: dict[tuple[int, int], str] | None = None,
    ) -> tuple[TokenTree, list[int]]:
        """One tree of all the prompt's questions.

        Args:
            answers: (candidate, question) -> its answer, a branch to learn from.

        Returns:
            The tree, and the index of each question's last token, candidate by
            candidate.
        """
        branches = [Branch(-1, self.encode(self.before + prompt.shared))]
        asked: list[int] = []
        for place, candidate in enumerate(prompt.candidates):
            parent = 0
            if candidate:
                branches.append(Branch(0, self.encode(candidate)))
                parent = len(branches) - 1
            for nth, question in enumerate(prompt.asks(place)):
                branches.append(Branch(parent, self.encode(question + self.after)))
                asked.append(len(branches) - 1)
                answer = (answers or {}).get((place, nth))
                if answer is not None:
                    reply = (*self.encode(answer), self.tokenizer.eos_token_id)
                    branches.append(Branch(asked[-1], reply, is_answer=True))
        tree = TokenTree.of(branches)
        return tree, tree.end_R[asked].tolist()


def _render(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    # Some templates think aloud before they answer; others ignore the word.
    text: str = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text
