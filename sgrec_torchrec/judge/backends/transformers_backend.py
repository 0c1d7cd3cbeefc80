"""Prompts -> answers, by a transformers model in this process.

The default on a CPU. Histories are computed once per user (``token_tree``); of the
vocabulary only the levels are scored. Letters as in ``token_tree``; S levels.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.judge.ask.token_tree import TreeBatch
from sgrec_torchrec.judge.backends.protocol import Usage
from sgrec_torchrec.schema import Float32Array

MAX_CANDIDATES = 16
"""Of one tree: attention grows with the square of its length."""
CPU_TOKENS, GPU_TOKENS = 1_024, 32_768
"""Of one forward, padding included; a single tree may be longer."""


def level_logits(
    model: Any, batch: TreeBatch, ends: Sequence[Sequence[int]], level_tokens: list[int]
) -> list[Tensor]:
    """Logits of the level tokens after each question: one float [questions, S] a tree.

    Differentiable. Equal to the model's own logits at those places and tokens, without
    computing the others.
    """
    device = model.device
    hidden_BTD = model.get_decoder()(
        input_ids=batch.input_ids.to(device),
        position_ids=batch.position_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        use_cache=False,
    ).last_hidden_state
    head = model.get_output_embeddings()
    weight_SD = head.weight[level_tokens]
    bias_S = None if head.bias is None else head.bias[level_tokens]
    return [
        torch.nn.functional.linear(hidden_BTD[row, list(at)], weight_SD, bias_S).float()
        for row, at in enumerate(ends)
    ]


class TransformersBackend:
    """A ``Backend`` over a loaded model and tokenizer."""

    name = "transformers"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        model_name: str,
        *,
        shares: bool = True,
        bf16: bool = False,
    ) -> None:
        """As above.

        Args:
            shares: False computes every prompt alone (to measure against).
            bf16: matrix products in bfloat16: twice as fast on a CPU that has them.
        """
        self.model = model_name
        self.usage = Usage()
        self.chat = Chat.of(tokenizer)
        self._llm = model
        self._grammars: dict[str, Any] = {}
        self._shares, self._bf16 = shares, bf16
        if bf16:
            self.name = "transformers, bfloat16"
        self._max_tokens = CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS

    @torch.no_grad()
    def rate(
        self, prompts: Sequence[UserPrompt], levels: Sequence[str]
    ) -> list[Float32Array]:
        """As ``Backend.rate``; one forward serves many questions."""
        begin = time.perf_counter()
        level_tokens = self.chat.level_tokens(tuple(levels))
        parts = [list(_parts(prompt, self._shares)) for prompt in prompts]
        trees = [self.chat.question_tree(part) for some in parts for part in some]
        probability: dict[int, Tensor] = {}
        for rows in self._batches([len(tree) for tree, _ in trees]):
            batch = TreeBatch.of([trees[row][0] for row in rows], self.chat.padding)
            ends = [trees[row][1] for row in rows]
            with torch.autocast(
                self._llm.device.type, torch.bfloat16, enabled=self._bf16
            ):
                logits = level_logits(self._llm, batch, ends, level_tokens)
            for row, one in zip(rows, logits, strict=True):
                probability[row] = one.softmax(-1).cpu()
        for tree, ends_of in trees:
            full = int((tree.position_T[ends_of] + 1).sum())
            self.usage.prompt_tokens += full
            self.usage.cached_tokens += full - len(tree)
        self.usage.seconds += time.perf_counter() - begin
        in_order = iter(range(len(trees)))
        return [
            torch.cat([probability[next(in_order)] for _ in some])
            .reshape(len(prompt.candidates), len(prompt.questions), len(levels))
            .numpy()
            for prompt, some in zip(prompts, parts, strict=True)
        ]

    @torch.no_grad()
    def write(
        self, prompts: Sequence[UserPrompt], schema: dict[str, Any], max_tokens: int
    ) -> list[list[str]]:
        """As ``Backend.write``: greedy, within the schema's grammar."""
        begin = time.perf_counter()
        key = json.dumps(schema)
        if key not in self._grammars:  # about a second each
            self._grammars[key] = _grammar(
                self.chat.tokenizer, schema, self._llm.config.vocab_size
            )
        grammar = self._grammars[key]
        written = [self._write(prompt, grammar, max_tokens) for prompt in prompts]
        self.usage.seconds += time.perf_counter() - begin
        return written

    def _write(self, prompt: UserPrompt, grammar: Any, max_tokens: int) -> list[str]:
        from xgrammar.contrib.hf import LogitsProcessor

        tokenizer = self.chat.tokenizer
        chains = [self.chat.encode(text) for text in self.chat.full_texts(prompt)]
        longest = max(map(len, chains))
        ids = torch.full((len(chains), longest), self.chat.padding)
        mask = torch.zeros_like(ids)
        for row, chain in enumerate(chains):
            ids[row, longest - len(chain) :] = torch.tensor(chain)
            mask[row, longest - len(chain) :] = 1
        answers = self._llm.generate(
            input_ids=ids.to(self._llm.device),
            attention_mask=mask.to(self._llm.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=self.chat.padding,
            logits_processor=[LogitsProcessor(grammar)],
        )[:, longest:]
        self.usage.prompt_tokens += sum(map(len, chains))
        self.usage.written_tokens += int((answers != self.chat.padding).sum())
        texts: list[str] = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return texts

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Trees of about equal length together, at most ``_max_tokens`` a forward."""
        rows: list[int] = []
        for row in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
            if rows and lengths[rows[0]] * (len(rows) + 1) > self._max_tokens:
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows


def _parts(prompt: UserPrompt, shares: bool) -> Iterator[UserPrompt]:
    """The prompt in trees of bounded size; or each of its questions alone."""
    num_candidates, num_questions = len(prompt.candidates), len(prompt.questions)
    if shares:
        for first in range(0, num_candidates, MAX_CANDIDATES):
            yield prompt.part(slice(first, first + MAX_CANDIDATES))
        return
    for place in range(num_candidates):
        for nth in range(num_questions):
            yield prompt.part(slice(place, place + 1), slice(nth, nth + 1))


def _grammar(tokenizer: Any, schema: dict[str, Any], vocab_size: int) -> Any:
    import xgrammar

    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    return xgrammar.GrammarCompiler(info).compile_json_schema(
        schema, any_whitespace=False
    )
