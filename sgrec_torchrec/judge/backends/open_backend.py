"""A backend by its name; its stack is imported only then."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from sgrec_torchrec.config.registry import JUDGE_BACKENDS
from sgrec_torchrec.judge.backends.language_model import EXTRA, load_model
from sgrec_torchrec.judge.backends.protocol import Backend

OpenBackend = Callable[[str, dict[str, Any]], Backend]
"""(model, settings) -> the backend, its model loaded."""
VLLM_SETUP = (
    "it lives in an environment of its own: run .ci/setup-vllm, then "
    ".venv-vllm/bin/sgrec"
)


def open_backend(name: str, model: str, **settings: Any) -> Backend:
    """A ``Backend``, its model loaded.

    Args:
        name: transformers, vllm, openai, or that of an installed package's backend. A
            script that opens vllm must guard ``__main__`` (``vllm_backend`` says why).
        model: folder or Hugging Face name; for openai the name that the server uses.
        settings: of ``VllmSettings``; for openai ``base_url`` and those of
            ``ServerSettings``; for transformers ``shares``. ``bf16`` for the first two.

    Raises:
        ValueError: for an unknown name or setting.
        ModuleNotFoundError: naming what to install, where the stack is missing.
        ImportError: for a package whose backend cannot be loaded.
    """
    open_it: OpenBackend = JUDGE_BACKENDS.load(name)
    return open_it(model, settings)


def open_transformers(model: str, settings: dict[str, Any]) -> Backend:
    """A model in this process."""
    _need("transformers", "transformers", EXTRA)
    _check("transformers", settings, ["shares", "bf16"])
    from sgrec_torchrec.judge.backends.transformers_backend import TransformersBackend

    llm, tokenizer = load_model(model)
    return TransformersBackend(llm, tokenizer, model, **settings)


def open_vllm(model: str, settings: dict[str, Any]) -> Backend:
    """vLLM's engine in this process."""
    _need("vllm", "vllm", VLLM_SETUP)
    from sgrec_torchrec.judge.backends.vllm_backend import (
        VllmBackend,
        VllmSettings,
        load_engine,
    )

    if settings.pop("bf16", False):
        settings["dtype"] = "bfloat16"
    _check("vllm", settings, [one.name for one in fields(VllmSettings)])
    return VllmBackend(load_engine(model, VllmSettings(**settings)), model)


def open_openai(model: str, settings: dict[str, Any]) -> Backend:
    """A server that speaks OpenAI's protocol."""
    _need("openai", "httpx2", EXTRA)
    from sgrec_torchrec.judge.backends.chat_server import ServerSettings
    from sgrec_torchrec.judge.backends.openai_backend import OpenAiBackend

    known = ["base_url", *(one.name for one in fields(ServerSettings))]
    _check("openai", settings, known)
    rest = {key: value for key, value in settings.items() if key != "base_url"}
    if not settings.get("base_url"):
        raise ValueError("the backend openai needs base_url, the server's address")
    return OpenAiBackend(settings["base_url"], model, ServerSettings(**rest))


def _need(name: str, module: str, how: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"the backend {name} needs {module}, which is not installed: {how}"
        )


def _check(name: str, settings: dict[str, Any], known: Sequence[str]) -> None:
    for setting in settings:
        if setting not in known:
            raise ValueError(
                f"the backend {name} has no setting {setting!r}; it has "
                f"{', '.join(known)}"
            )
