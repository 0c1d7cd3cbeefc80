"""vLLM's answers are the transformers backend's; what it is asked, without it.

The first tests put a stand-in for the module vllm; the slow ones run the real one in
``.venv-vllm`` (``.ci/setup-vllm`` makes it).
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sgrec_torchrec.judge.ask.aspects import ASPECTS, LEVELS, answer_schema, read_answer
from sgrec_torchrec.judge.ask.chat import Chat
from sgrec_torchrec.judge.ask.prompt import UserPrompt
from sgrec_torchrec.judge.backends.vllm_backend import (
    VllmBackend,
    VllmSettings,
    load_engine,
    token_prompts,
)

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
needs_vllm = pytest.mark.skipif(
    not (ROOT / ".venv-vllm" / ".ready").is_file(),
    reason="the environment .venv-vllm is absent; .ci/setup-vllm makes it",
)
SCRIPT = """
import json, sys
from dataclasses import asdict
from sgrec_torchrec.judge.backends.open_backend import open_backend
from sgrec_torchrec.judge.ask.prompt import UserPrompt

def main():
    asked = json.load(open(sys.argv[1]))
    rate, write = ([UserPrompt(**one) for one in asked[k]] for k in ("rate", "write"))
    settings = {"kv_cache_gib": 0.5, "dtype": "float32"}
    backend = open_backend("vllm", asked["model"], **settings)
    rated = [one.tolist() for one in backend.rate(rate, asked["levels"])]
    after_rating = asdict(backend.usage)
    again = [one.tolist() for one in backend.rate(rate, asked["levels"])]
    written = backend.write(write, asked["schema"], 120)
    facts = {"rated": rated, "again": again, "after_rating": after_rating}
    facts |= {"written": written, "usage": asdict(backend.usage)}
    json.dump(facts, open(sys.argv[2], "w"))

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def prompts(hand_prompt) -> list[UserPrompt]:
    """Of 2, 8 and 1 candidates; the second is over a hundred tokens long."""
    many = tuple(f"Candidate: {'x' * (n % 7)} {n}\n" for n in range(8))
    return [
        hand_prompt(),
        hand_prompt("History:" + " a lamp, a desk," * 40 + "\n", many),
        hand_prompt("-\n", ("",)),
    ]


class StandIn:
    """An engine whose logprobs tell the place of a request; keeps what it is asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.asked: list[list[int]] = []
        self.sampling: list[Any] = []
        self._tokenizer = tokenizer

    def get_tokenizer(self) -> Any:
        return self._tokenizer

    def generate(self, prompts: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
        self.sampling.append(sampling)
        begin = len(self.asked)
        self.asked += [one["prompt_token_ids"] for one in prompts]
        return [
            SimpleNamespace(
                prompt_token_ids=tokens,
                num_cached_tokens=None if nth == begin else 7,
                outputs=[self._output(nth, sampling)],
            )
            for nth, tokens in enumerate(self.asked[begin:], begin)
        ]

    def _output(self, nth: int, sampling: Any) -> Any:
        tokens = getattr(sampling, "logprob_token_ids", ())
        top = {
            token: SimpleNamespace(logprob=-0.5 * ((nth + place) % 5))
            for place, token in enumerate(tokens)
        }
        # What vLLM adds: the drawn token, which may be no level.
        top.setdefault(0, SimpleNamespace(logprob=0.0))
        return SimpleNamespace(logprobs=[top], text=f"said {nth}", token_ids=[1, 2, 3])


@pytest.fixture
def stand_in(tiny, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    params.StructuredOutputsParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return StandIn(tiny[1])


def test_tokens_are_those_of_the_tree(tiny, prompts) -> None:
    chat = Chat.of(tiny[1])
    for prompt in prompts:
        tree, ends = chat.question_tree(prompt)
        sees_TT = tree.mask_TT()
        expected = [tuple(tree.token_T[sees_TT[end]].tolist()) for end in ends]
        assert token_prompts(chat, prompt) == expected


def test_rates_are_normalised_and_in_order(stand_in, prompts) -> None:
    backend = VllmBackend(stand_in, "some")
    rated = backend.rate(prompts, LEVELS)
    assert [one.shape for one in rated] == [(2, 2, 5), (8, 2, 5), (1, 2, 5)]
    flat = np.concatenate([one.reshape(-1, 5) for one in rated])
    assert flat.dtype == np.float32
    for nth, row in enumerate(flat):
        weights = [math.exp(-0.5 * ((nth + place) % 5)) for place in range(5)]
        np.testing.assert_allclose(row, np.array(weights) / sum(weights), rtol=1e-6)
    (sampling,) = stand_in.sampling
    assert sampling.logprob_token_ids == backend.chat.level_tokens(LEVELS)
    assert (sampling.max_tokens, sampling.temperature) == (1, 0.0)
    assert backend.usage.prompt_tokens == sum(map(len, stand_in.asked))
    assert backend.usage.cached_tokens == 7 * 21  # all but the first
    assert backend.usage.written_tokens == 0
    assert backend.rate([], LEVELS) == []


def test_written_answers_keep_their_order(stand_in, prompts) -> None:
    backend = VllmBackend(stand_in, "some")
    written = backend.write(prompts, answer_schema(ASPECTS), 77)
    assert [len(one) for one in written] == [4, 16, 2]
    assert [text for one in written for text in one] == [f"said {n}" for n in range(22)]
    (sampling,) = stand_in.sampling
    assert sampling.max_tokens == 77
    assert 'root ::= (("{" "\\"profile\\""' in sampling.structured_outputs.grammar
    assert backend.usage.written_tokens == 3 * 22


def test_a_model_without_a_chat_template_is_refused() -> None:
    engine = StandIn(SimpleNamespace(chat_template=None))
    with pytest.raises(ValueError, match="some has no chat template"):
        VllmBackend(engine, "some")


@pytest.mark.parametrize(
    ("device", "settings", "cores", "expected"),
    [
        ("cpu", {}, "all", {"dtype": "float32", "enforce_eager": True}),
        (
            "cpu",
            {"dtype": "bfloat16", "compiles": True, "cpu_cores": "1"},
            "1",
            {"dtype": "bfloat16", "enforce_eager": False},
        ),
        ("cuda", {}, None, {"dtype": "bfloat16", "enforce_eager": False}),
        ("cuda", {"compiles": False}, None, {"enforce_eager": True}),
    ],
)
def test_the_engine_fits_the_machine(
    stand_in, monkeypatch: pytest.MonkeyPatch, device, settings, cores, expected
) -> None:
    monkeypatch.setattr(
        "sgrec_torchrec.judge.backends.vllm_backend.default_device",
        lambda: torch.device(device),
    )
    # Set, then removed: so that what is set within is undone.
    for variable in ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys.modules["vllm"], "LLM", SimpleNamespace, raising=False)
    engine = load_engine("folder", VllmSettings(**settings))
    assert expected.items() <= vars(engine).items()
    assert engine.enable_prefix_caching
    assert engine.trust_remote_code is False
    assert engine.load_format == "safetensors"
    every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
    assert bound == (every if cores == "all" else cores)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


@pytest.fixture(scope="module")
def run_vllm(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """run_vllm(rate, write) -> what SCRIPT found."""

    def run(rate: list[UserPrompt], write: list[UserPrompt]) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("vllm")
        script, asked, found = (folder / name for name in ("run.py", "asked", "found"))
        script.write_text(SCRIPT, encoding="utf-8")
        words = ("shared", "candidates", "questions")
        lists = [
            [{word: getattr(one, word) for word in words} for one in some]
            for some in (rate, write)
        ]
        facts = {"rate": lists[0], "write": lists[1], "levels": LEVELS}
        facts |= {"model": str(smollm2_folder), "schema": answer_schema(ASPECTS[:1])}
        asked.write_text(json.dumps(facts), encoding="utf-8")
        done = subprocess.run(
            [PYTHON, script, asked, found], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        answer: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return answer

    return run


@needs_vllm
@pytest.mark.slow
def test_vllm_agrees_with_transformers(run_vllm, smollm2_folder, prompts) -> None:
    from sgrec_torchrec.judge.backends.language_model import load_model
    from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend

    write = UserPrompt(
        shared=prompts[0].shared,
        candidates=prompts[0].candidates,
        questions=("Answer with JSON.",),
    )
    found = run_vllm(prompts, [write])
    model, tokenizer = load_model(str(smollm2_folder), torch.device("cpu"))
    backend = TransformersBackend(model, tokenizer, "SmolLM2")
    expected = backend.rate(prompts, LEVELS)
    for key in ("rated", "again"):
        for ours, theirs_CQS in zip(found[key], expected, strict=True):
            # float32 on both sides; 1e-5 was seen
            np.testing.assert_allclose(np.array(ours), theirs_CQS, rtol=0, atol=2e-4)
    usage = found["after_rating"]
    assert usage["prompt_tokens"] == backend.usage.prompt_tokens
    # The long prompt is computed once, and read 15 times.
    assert usage["cached_tokens"] > usage["prompt_tokens"] / 2
    assert usage["written_tokens"] == 0
    for text in found["written"][0]:
        level = read_answer(text, ASPECTS[:1]).levels[0]
        assert text.endswith(f', "level": {level}}}}}')  # spaced as it is trained
    assert 0 < found["usage"]["written_tokens"] <= 240
