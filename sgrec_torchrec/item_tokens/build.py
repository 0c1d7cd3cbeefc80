"""The stage as two calls: a split log -> the folder of item tokens -> item tokens.

The folder holds tokens.parquet (item_id, codes), codebook.safetensors, quality.json,
quality.png and manifest.json (settings, counts, sha256 of every file).
"""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgrec_torchrec.config import TokenConfig
from sgrec_torchrec.distributed.main_rank import verifies_files
from sgrec_torchrec.files.atomic import atomic_folder, sha256_file, write_json
from sgrec_torchrec.files.run_folder import MANIFEST, QUALITY, QUALITY_PICTURE
from sgrec_torchrec.files.sealed_json import read_sealed, write_sealed
from sgrec_torchrec.item_tokens.behaviour_embedding import (
    SparseGraph,
    behaviour_embedding,
    unit_rows,
)
from sgrec_torchrec.item_tokens.codebook import (
    Codebook,
    Collisions,
    check_finite,
    cost_from,
    resolve_collisions,
    tokens_from_sid,
)
from sgrec_torchrec.item_tokens.quality import (
    TokenQuality,
    measure_quality,
    quality_as_dict,
)
from sgrec_torchrec.item_tokens.quality_plot import draw_quality
from sgrec_torchrec.item_tokens.quantizer import quantize, reconstruction_error
from sgrec_torchrec.item_tokens.text_embedding import text_embedding
from sgrec_torchrec.schema import (
    Catalogue,
    Float32Array,
    ItemTokens,
    SplitLog,
)

FORMAT_VERSION = 2
CODEBOOK, TOKENS = "codebook.safetensors", "tokens.parquet"


def build_tokens(
    split: SplitLog, graph: SparseGraph | None, config: TokenConfig, out_dir: Path
) -> ItemTokens:
    """Embed, quantise, resolve, report and write; the old folder goes only at the end.

    Args:
        split: its catalogue is used, nothing of its events.
        graph: behaviour embeddings come from it, and the report asks it for
            neighbours. None is fine for the other sources.
        config: ``num_codes`` resolved, not None.
        out_dir: folder of the item tokens, replaced as a whole.

    Returns:
        Codes in the catalogue's order: one row an item, all distinct. Call it on one
        rank; ranks do not communicate. For scale see ``quantizer.quantize``,
        ``text_embedding`` and ``behaviour_embedding``; all else is sorts of N keys.

    Raises:
        ValueError: the source wants a column that is not there, a value of it is bad,
            or there are more items than codes.
        ModuleNotFoundError: text is wanted and its extra is not installed.
    """
    if config.num_codes is None:
        raise ValueError("tokens.num_codes is None: resolve the settings first")
    if not len(split.catalogue):
        raise ValueError("items.parquet has no items: nothing to give tokens to")
    tokens, codebook, quality = _make(split.catalogue, graph, config, config.num_codes)
    tokens.validate()
    with atomic_folder(out_dir) as folder:
        _write(folder, split.catalogue, tokens, codebook)
        write_json(folder / QUALITY, quality_as_dict(quality))
        draw_quality(quality, tokens, folder / QUALITY_PICTURE)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        manifest = {
            "format_version": FORMAT_VERSION,
            "num_items": tokens.num_items,
            "num_levels": tokens.num_levels,
            "num_codes": tokens.num_codes,
            "config": dataclasses.asdict(config),
            "sha256": {path.name: sha256_file(path) for path in files},
        }
        write_sealed(folder / MANIFEST, manifest)
    return tokens


def load_tokens(out_dir: Path) -> ItemTokens:
    """Read and verify what ``build_tokens`` wrote; sums by one process of a host.

    Raises:
        FileNotFoundError: the folder or one of its files is not there.
        ValueError: a file is not the one that was written (sha256), or the format is
            of another version.
    """
    manifest_path = out_dir / MANIFEST
    if not manifest_path.is_file():
        raise FileNotFoundError(f"no item tokens in {out_dir}: build them first")
    manifest = read_sealed(
        manifest_path,
        {"sha256": dict, "num_codes": int, "num_levels": int},
        format_version=FORMAT_VERSION,
        mend="build the tokens again",
    )
    num_codes, num_levels = manifest["num_codes"], manifest["num_levels"]
    for name, expected in manifest["sha256"].items():
        path = out_dir / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: build the tokens again")
        if verifies_files() and sha256_file(path) != expected:
            raise ValueError(f"{path} was changed or damaged: build the tokens again")
    table = pq.read_table(out_dir / TOKENS, page_checksum_verification=True)
    codes = pc.list_flatten(table["codes"]).to_numpy()
    codes_NL = codes.astype(np.int32).reshape(table.num_rows, num_levels)
    tokens = ItemTokens(codes_NL=codes_NL, num_codes=num_codes)
    if verifies_files():
        tokens.validate()
    return tokens


def item_embedding(
    catalogue: Catalogue, graph: SparseGraph | None, config: TokenConfig
) -> Float32Array:
    """What is quantised: [N, D] float32 of the source that ``config`` names.

    text: norm 1. behaviour: norm 1, or 0 without neighbours. text+behaviour: both side
    by side, behaviour times ``behaviour_weight``, so that an item without neighbours
    is placed by its text. embedding: the catalogue's own column, L2-normalised.

    Raises:
        ValueError: there is no graph or no embedding column, or a value is not finite.
    """
    parts: list[Float32Array] = []
    if config.source == "embedding":
        if catalogue.embedding_ND is None:
            raise ValueError(
                "tokens.source = 'embedding', but items.parquet has no column "
                "'embedding': add it (a list of floats per item) or choose text"
            )
        check_finite(catalogue.embedding_ND)
        return unit_rows(catalogue.embedding_ND)
    if "text" in config.source:
        parts.append(text_embedding(catalogue.texts, config.text_model))
    if "behaviour" in config.source:
        if graph is None:
            raise ValueError(f"tokens.source = {config.source!r} needs the item graph")
        if len(graph.indptr_N1) - 1 != len(catalogue):
            raise ValueError(
                f"the item graph has {len(graph.indptr_N1) - 1} items, the catalogue "
                f"{len(catalogue)}: build the graph of this log again"
            )
        behaviour = behaviour_embedding(graph, config.behaviour_dim, config.seed)
        parts.append(behaviour * np.float32(config.behaviour_weight))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _make(
    catalogue: Catalogue,
    graph: SparseGraph | None,
    config: TokenConfig,
    num_codes: int,
) -> tuple[ItemTokens, Codebook, TokenQuality]:
    error: float | None = None
    if config.source == "sid":
        tokens, collisions = _given(catalogue, config.num_levels, num_codes)
        no_geometry = np.zeros((num_codes, 0), dtype=np.float32)
        centroids = (no_geometry,) * config.num_levels
        codebook = Codebook(centroids=centroids, num_codes=num_codes)
    else:
        embedding_ND = item_embedding(catalogue, graph, config)
        codebook, raw_NL = quantize(
            embedding_ND,
            num_levels=config.num_levels,
            num_codes=num_codes,
            num_iterations=config.num_iterations,
            seed=config.seed,
        )
        cost_of = cost_from(codebook, embedding_ND)
        tokens, collisions = resolve_collisions(raw_NL, num_codes, cost_of)
        error = reconstruction_error(codebook, embedding_ND, tokens.codes_NL)
    quality = measure_quality(
        tokens,
        collisions,
        graph,
        source=config.source,
        reconstruction_error=error,
        seed=config.seed,
    )
    return tokens, codebook, quality


def _given(
    catalogue: Catalogue, num_levels: int, num_codes: int
) -> tuple[ItemTokens, Collisions]:
    if catalogue.sid_NL is None:
        raise ValueError(
            "tokens.source = 'sid', but items.parquet has no column 'sid': add it (a "
            "list of codes per item) or choose another source"
        )
    return tokens_from_sid(catalogue.sid_NL, num_levels, num_codes, catalogue.item_ids)


def _write(
    folder: Path, catalogue: Catalogue, tokens: ItemTokens, codebook: Codebook
) -> None:
    flat = pa.array(tokens.codes_NL.reshape(-1), pa.int32())
    offsets = np.arange(tokens.num_items + 1, dtype=np.int64) * tokens.num_levels
    codes = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
    item_ids = pa.array(catalogue.item_ids, pa.large_string())
    table = pa.Table.from_arrays([item_ids, codes], names=["item_id", "codes"])
    pq.write_table(table, folder / TOKENS, write_page_checksum=True)
    codebook.save(folder / CODEBOOK)
