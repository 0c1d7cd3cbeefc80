"""Sentence embeddings: the formula, the cache, the errors."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from sgrec_torchrec.item_tokens import text_embedding as module
from sgrec_torchrec.item_tokens.text_embedding import text_embedding

HAS_MODEL = all(
    importlib.util.find_spec(name) for name in ("transformers", module.DEFAULT_PACKAGE)
)
needs_model = pytest.mark.skipif(
    not HAS_MODEL, reason="the extra 'text' is not installed"
)
TEXTS = ["Toy Story (1995) Animation", "Heat (1995) Crime, Thriller", "", "Toy story"]


@needs_model
def test_rows_have_norm_one_and_like_texts_are_near(tmp_path: Path) -> None:
    rows = text_embedding(TEXTS, cache_dir=tmp_path)
    assert rows.shape == (4, 384)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    assert rows[0] @ rows[3] > rows[0] @ rows[1] + 0.1


@needs_model
def test_a_text_of_a_mixed_batch_is_pooled_as_alone(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = module.default_model_dir()
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[3], return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder).eval()(**ids).last_hidden_state[0]
    expected = hidden.mean(dim=0) / hidden.mean(dim=0).norm()
    rows = text_embedding([*TEXTS, "word " * 300], cache_dir=tmp_path)
    np.testing.assert_allclose(rows[3], expected.numpy(), atol=1e-5)


@needs_model
def test_a_second_call_reads_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = text_embedding(TEXTS, cache_dir=tmp_path)

    def refuse(*_: object) -> None:
        raise RuntimeError("encoded again")

    monkeypatch.setattr(module, "_encode", refuse)
    np.testing.assert_array_equal(first, text_embedding(TEXTS, cache_dir=tmp_path))
    with pytest.raises(RuntimeError, match="encoded again"):
        text_embedding(TEXTS[::-1], cache_dir=tmp_path)


def test_texts_that_join_to_the_same_bytes_have_keys_of_their_own() -> None:
    one = module._cache_key("m", False, ["ab", "c"])
    assert one != module._cache_key("m", False, ["a", "bc"])
    assert one != module._cache_key("other", False, ["ab", "c"])
    assert one == module._cache_key("m", False, ["ab", "c"])


def test_other_weights_in_the_same_folder_have_another_key(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"old")
    key = module._cache_key(str(tmp_path), False, ["a"])
    assert key == module._cache_key(str(tmp_path), False, ["a"])
    weights.write_bytes(b"newer")
    assert key != module._cache_key(str(tmp_path), False, ["a"])


@pytest.mark.parametrize("missing", ["transformers", module.DEFAULT_PACKAGE])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    # Both are asked for by name; the one that is not under test counts as found.
    other = find("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else other
    )
    with pytest.raises(ModuleNotFoundError, match=r"sgrec_torchrec\[text\]"):
        text_embedding(["x"], cache_dir=tmp_path)


@needs_model
def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokens\.text_model = "):
        text_embedding(["x"], str(tmp_path / "none"), cache_dir=tmp_path)


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGREC_CACHE", "/a")
    assert module.default_cache_dir() == Path("/a/text_embeddings")
    monkeypatch.delenv("SGREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert module.default_cache_dir() == Path("/b/sgrec_torchrec/text_embeddings")
