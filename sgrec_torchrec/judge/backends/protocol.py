"""What every backend does: prompts in, level distributions or written answers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.schema import Float32Array


@dataclass(slots=True, kw_only=True)
class Usage:
    """What answering has cost so far."""

    prompt_tokens: int = 0
    """Of all prompts in full, as if nothing were shared."""
    cached_tokens: int = 0
    """Of these, taken from what was computed before for the same user."""
    written_tokens: int = 0
    seconds: float = 0.0


class Backend(Protocol):
    """A language model that answers ``UserPrompt``s."""

    name: str
    """As ``--backend`` names it: transformers, vllm, openai, or a package's."""
    model: str
    """What it runs, as the manifest names it."""
    usage: Usage

    def rate(
        self, prompts: Sequence[UserPrompt], levels: Sequence[str]
    ) -> list[Float32Array]:
        """Probabilities of the levels as the next token, normalised over them.

        Returns:
            One float32 [C, Q, S] a prompt: its candidates, questions, the levels. NaN
            where the model named none of them.
        """
        ...

    def write(
        self, prompts: Sequence[UserPrompt], schema: dict[str, Any], max_tokens: int
    ) -> list[list[str]]:
        """One text a candidate and question, in the order of ``UserPrompt.texts``.

        Args:
            schema: JSON schema that constrains the text where the backend can; the
                caller checks it in any case.
        """
        ...
