"""Prompts -> answers, by vLLM's offline engine.

Its prefix cache computes a history once per user, in whole blocks of tokens. vLLM
starts worker processes that import the calling script again, so a script that opens
this backend must do so below ``if __name__ == "__main__":``.

Letters: C candidates, Q questions, S levels.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.judge.backends.language_model import default_device
from sgrec_torchrec.judge.backends.protocol import Usage
from sgrec_torchrec.schema import Float32Array

LONGEST_THAT_FITS = -1
"""As vLLM spells it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """How the engine runs."""

    dtype: str | None = None
    """None: bfloat16 on a GPU, float32 on a CPU, as in the transformers backend. On a
    CPU, bfloat16 is four times slower without AVX512 and twice as fast with its bf16
    instructions; it moves SmolLM2's probabilities by up to 0.04."""
    compiles: bool | None = None
    """None: on a GPU. On a CPU compiling takes two minutes and gains little."""
    block_tokens: int | None = None
    """The prefix cache shares whole blocks; None: 32 on a CPU (vLLM's own 128 would
    never share a candidate between its questions), vLLM's own on a GPU."""
    max_model_tokens: int = LONGEST_THAT_FITS
    """Of a prompt and its answer."""
    kv_cache_gib: float = 2.0
    """On a CPU; VLLM_CPU_KVCACHE_SPACE overrides it."""
    cpu_cores: str | None = None
    """As "0-3,6"; None: VLLM_CPU_OMP_THREADS_BIND, else all this process may use."""
    gpu_memory_share: float = 0.9


def load_engine(folder: str, settings: VllmSettings | None = None) -> Any:
    """Start vLLM on a model folder or name; 30 s on a CPU, more where it compiles.

    Sets vLLM's environment variables in this process. No code of the model's repository
    is run, and no pickle is read.

    Raises:
        ValueError: from vLLM, for a model or settings that it does not take.
        RuntimeError: from vLLM, where the engine does not start (its log says why).
    """
    settings = settings or VllmSettings()
    # It would report each start to its makers.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if default_device().type == "cuda":
        device = _gpu_options(settings)
    else:
        device = _cpu_options(settings)

    from vllm import LLM  # type: ignore[import-not-found]

    return LLM(
        model=folder,
        max_model_len=settings.max_model_tokens,
        enable_prefix_caching=True,
        load_format="safetensors",
        trust_remote_code=False,
        seed=0,
        **device,
    )


class VllmBackend:
    """A ``Backend`` over a running engine.

    A script that makes one must guard ``__main__``: see the module's docstring.
    """

    name = "vllm"

    def __init__(self, engine: Any, model_name: str) -> None:
        """Args: ``engine`` from ``load_engine``.

        Raises:
            ValueError: where the model has no chat template.
        """
        tokenizer = engine.get_tokenizer()
        if tokenizer.chat_template is None:
            raise ValueError(f"{model_name} has no chat template: name an instruct one")
        self.model = model_name
        self.usage = Usage()
        self.chat = Chat.of(tokenizer)
        self._engine = engine

    def rate(
        self, prompts: Sequence[UserPrompt], levels: Sequence[str]
    ) -> list[Float32Array]:
        """As ``Backend.rate``: exact, from the levels' own log-probabilities.

        The token that vLLM must draw for that is not counted as written.

        Raises:
            ValueError: for a level of several tokens, or a prompt that is too long.
        """
        from vllm import SamplingParams

        begin = time.perf_counter()
        level_tokens = self.chat.level_tokens(tuple(levels))
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=level_tokens,
            detokenize=False,
        )
        rated = []
        for prompt, answers in zip(
            prompts, self._answers(prompts, sampling), strict=True
        ):
            tops = [answer.outputs[0].logprobs[0] for answer in answers]
            logprob_PS = np.array(
                [[top[token].logprob for token in level_tokens] for top in tops],
                dtype=np.float32,
            )
            shape = (len(prompt.candidates), len(prompt.questions), len(levels))
            rated.append(_softmax(logprob_PS).reshape(shape))
        self.usage.seconds += time.perf_counter() - begin
        return rated

    def write(
        self, prompts: Sequence[UserPrompt], schema: dict[str, Any], max_tokens: int
    ) -> list[list[str]]:
        """As ``Backend.write``: greedy, within the schema's grammar.

        Raises:
            ValueError: for a prompt that is too long with its answer.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import (  # type: ignore[import-not-found]
            StructuredOutputsParams,
        )
        from xgrammar import Grammar

        begin = time.perf_counter()
        # Not json=schema: vLLM would then allow any white space between its parts
        # (0.32 ignores a request's wish), and that is not what a judge is trained on.
        grammar = Grammar.from_json_schema(schema, any_whitespace=False)
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            structured_outputs=StructuredOutputsParams(grammar=str(grammar)),
        )
        written = []
        for answers in self._answers(prompts, sampling):
            first = [answer.outputs[0] for answer in answers]
            written.append([one.text for one in first])
            self.usage.written_tokens += sum(len(one.token_ids) for one in first)
        self.usage.seconds += time.perf_counter() - begin
        return written

    def _answers(self, prompts: Sequence[UserPrompt], sampling: Any) -> list[list[Any]]:
        """vLLM's answers to each prompt's texts, in their order."""
        asked = [token_prompts(self.chat, prompt) for prompt in prompts]
        given = self._engine.generate(
            [{"prompt_token_ids": list(one)} for one in chain.from_iterable(asked)],
            sampling,
            use_tqdm=False,
        )
        for answer in given:
            self.usage.prompt_tokens += len(answer.prompt_token_ids)
            self.usage.cached_tokens += answer.num_cached_tokens or 0
        in_order = iter(given)
        return [[next(in_order) for _ in some] for some in asked]


def token_prompts(chat: Chat, prompt: UserPrompt) -> list[tuple[int, ...]]:
    """The prompt's texts as tokens, in the order of ``UserPrompt.texts``.

    Encoded piece by piece, as ``Chat.question_tree`` does: so the shared part has the
    same tokens in all of them, and every backend reads the same.
    """
    shared = chat.encode(chat.before + prompt.shared)
    return [
        (*shared, *chat.encode(candidate), *chat.encode(question + chat.after))
        for place, candidate in enumerate(prompt.candidates)
        for question in prompt.asks(place)
    ]


def _gpu_options(settings: VllmSettings) -> dict[str, Any]:
    return {
        "dtype": settings.dtype or "bfloat16",
        "enforce_eager": settings.compiles is False,
        "block_size": settings.block_tokens,
        "gpu_memory_utilization": settings.gpu_memory_share,
    }


def _cpu_options(settings: VllmSettings) -> dict[str, Any]:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    if settings.cpu_cores is not None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = settings.cpu_cores
    else:
        # vLLM's own choice leaves every second logical core idle.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    return {
        "dtype": settings.dtype or "float32",
        "enforce_eager": not settings.compiles,
        "block_size": settings.block_tokens or 32,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
    }


def _softmax(logprob_PS: Float32Array) -> Float32Array:
    above_PS = np.exp(logprob_PS - logprob_PS.max(axis=-1, keepdims=True))
    probability_PS: Float32Array = above_PS / above_PS.sum(axis=-1, keepdims=True)
    return probability_PS
