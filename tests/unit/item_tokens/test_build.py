"""The stage as a whole: sources, files, verification, determinism, errors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from sgrec_torchrec.config import TokenConfig
from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.item_tokens import build as module
from sgrec_torchrec.item_tokens.behaviour_embedding import behaviour_embedding
from sgrec_torchrec.item_tokens.build import build_tokens, item_embedding, load_tokens
from sgrec_torchrec.item_tokens.codebook import Codebook, Collisions
from sgrec_torchrec.schema import (
    Catalogue,
    EvalRows,
    ItemTokens,
    Sequences,
    SplitLog,
)

NUM_ITEMS = 60


class Graph:
    """Two blocks of items, each well linked inside; the last item has no edge."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        block = np.arange(NUM_ITEMS) % 2
        linked = (generator.random((NUM_ITEMS, NUM_ITEMS)) < 0.5) & (
            block[:, None] == block
        )
        linked[-1] = linked[:, -1] = False
        np.fill_diagonal(linked, False)
        edges = scipy.sparse.csr_array(linked.astype(np.float32))
        self.indptr_N1 = edges.indptr.astype(np.int64)
        self.neighbours_E = edges.indices.astype(np.int32)
        self.weights_E = edges.data


def split_of(
    num_items: int = NUM_ITEMS,
    embedding: np.ndarray | None = None,
    sid: np.ndarray | None = None,
) -> SplitLog:
    names = [f"item-{n}" for n in range(num_items)]
    nothing = np.zeros(0, dtype=np.int32)
    sequences = Sequences(
        offsets_U1=np.zeros(1, dtype=np.int64),
        items_R=nothing,
        timestamps_R=nothing.astype(np.int64),
        events_R=nothing.astype(np.int16),
        values_R=nothing.astype(np.float32),
        train_end_U=nothing,
        valid_end_U=nothing,
        num_items=num_items,
        num_event_types=1,
        has_clock=True,
        has_value=False,
    )
    rows = EvalRows(
        user_E=nothing.astype(np.int64),
        history_start_E=nothing,
        history_end_E=nothing,
        target_E=nothing,
        target_timestamp_E=nothing.astype(np.int64),
    )
    catalogue = Catalogue(
        item_ids=names,
        titles=names,
        brands=[""] * num_items,
        categories=[""] * num_items,
        texts=names,
        embedding_ND=embedding,
        sid_NL=sid,
    )
    return SplitLog(
        sequences=sequences,
        valid=rows,
        test=rows,
        catalogue=catalogue,
        user_ids=[],
        protocol="leave-last-out",
    )


CONFIG = TokenConfig(source="behaviour", num_codes=16, num_iterations=5)


def test_what_is_built_is_what_is_loaded(tmp_path: Path) -> None:
    tokens = build_tokens(split_of(), Graph(), CONFIG, tmp_path / "tokens")
    again = load_tokens(tmp_path / "tokens")
    np.testing.assert_array_equal(tokens.codes_NL, again.codes_NL)
    assert again.num_codes == 16
    names = {path.name for path in (tmp_path / "tokens").iterdir()}
    assert names == {
        "tokens.parquet",
        "codebook.safetensors",
        "quality.json",
        "quality.png",
        "manifest.json",
    }
    table = pq.read_table(tmp_path / "tokens" / "tokens.parquet")
    assert table["item_id"].to_pylist()[:2] == ["item-0", "item-1"]
    assert table["codes"].to_pylist()[3] == tokens.codes_NL[3].tolist()
    quality = json.loads((tmp_path / "tokens" / "quality.json").read_text())
    # Neighbours lie in one of two blocks: at best they share twice as often.
    assert quality["neighbours_sharing"][0] > 1.2 * quality["random_sharing"][0]
    assert Codebook.load(tmp_path / "tokens" / "codebook.safetensors").dim == 64


def test_same_seed_gives_the_same_codes(tmp_path: Path) -> None:
    first = build_tokens(split_of(), Graph(), CONFIG, tmp_path / "a")
    again = build_tokens(split_of(), Graph(), CONFIG, tmp_path / "b")
    np.testing.assert_array_equal(first.codes_NL, again.codes_NL)


def test_behaviour_separates_blocks_and_leaves_lone_items_at_zero() -> None:
    rows = behaviour_embedding(Graph(), 8, seed=0)
    assert rows.shape == (NUM_ITEMS, 8)
    assert not rows[-1].any()
    np.testing.assert_allclose(np.linalg.norm(rows[:-1], axis=1), 1.0, rtol=1e-5)
    near = rows[:-1] @ rows[:-1].T
    block = np.arange(NUM_ITEMS - 1) % 2
    same = block[:, None] == block
    assert near[same].mean() > near[~same].mean() + 0.1


def test_behaviour_equals_a_dense_factorisation() -> None:
    graph = Graph()
    edges = scipy.sparse.csr_array(
        (graph.weights_E, graph.neighbours_E, graph.indptr_N1),
        shape=(NUM_ITEMS, NUM_ITEMS),
    ).toarray()
    weight = edges + edges.T
    degree = weight.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.log(weight * weight.sum() / (degree * degree.T))
    lift = np.where(weight > 0, np.maximum(lift, 0), 0)
    value, vector = np.linalg.eigh(lift)
    best = np.argsort(-np.abs(value))[:4]
    dense = vector[:, best] * np.sqrt(np.abs(value[best]))
    dense = dense[:-1] / np.linalg.norm(dense[:-1], axis=1, keepdims=True)
    rows = behaviour_embedding(graph, 4, seed=0)[:-1]
    # Products of rows do not depend on the signs of the columns.
    np.testing.assert_allclose(rows @ rows.T, dense @ dense.T, atol=2e-2)


def test_a_graph_without_edges_gives_zeros() -> None:
    graph = Graph()
    graph.indptr_N1 = np.zeros(NUM_ITEMS + 1, dtype=np.int64)
    graph.neighbours_E, graph.weights_E = graph.neighbours_E[:0], graph.weights_E[:0]
    assert not behaviour_embedding(graph, 8, seed=0).any()


def test_text_and_behaviour_stand_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = np.eye(NUM_ITEMS, dtype=np.float32)
    monkeypatch.setattr(module, "text_embedding", lambda texts, model: text)
    config = dataclasses.replace(
        CONFIG, source="text+behaviour", behaviour_dim=8, behaviour_weight=0.5
    )
    both = item_embedding(split_of().catalogue, Graph(), config)
    np.testing.assert_array_equal(both[:, :NUM_ITEMS], text)
    norms = np.linalg.norm(both[:, NUM_ITEMS:], axis=1)
    np.testing.assert_allclose(norms, [0.5] * (NUM_ITEMS - 1) + [0.0], rtol=1e-5)


def test_the_users_own_embedding_is_normalised_and_used(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    split = split_of(30, embedding=7 * rows)
    config = dataclasses.replace(CONFIG, source="embedding")
    embedding = item_embedding(split.catalogue, None, config)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0, rtol=1e-5)
    build_tokens(split, None, config, tmp_path / "tokens").validate()


def test_the_users_own_ids_are_kept_and_collisions_counted(tmp_path: Path) -> None:
    sid = np.array([[1, 2, 3], [1, 2, 3], [0, 0, 0]], dtype=np.int32)
    config = dataclasses.replace(CONFIG, source="sid")
    tokens = build_tokens(split_of(3, sid=sid), None, config, tmp_path / "tokens")
    assert tokens.codes_NL.tolist() == [[1, 2, 3], [1, 2, 2], [0, 0, 0]]
    quality = json.loads((tmp_path / "tokens" / "quality.json").read_text())
    assert quality["collision_rate_before"] == pytest.approx(2 / 3)
    assert quality["moved_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("source", ["sid", "embedding", "behaviour"])
def test_a_source_that_is_not_there_is_an_error(tmp_path: Path, source: str) -> None:
    config = dataclasses.replace(CONFIG, source=source)
    with pytest.raises(ValueError, match=f"tokens.source = '{source}'"):
        build_tokens(split_of(), None, config, tmp_path / "tokens")
    assert not list(tmp_path.iterdir())


def test_a_graph_of_another_catalogue_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="graph has 60 items, the catalogue 5"):
        build_tokens(split_of(5), Graph(), CONFIG, tmp_path / "tokens")


def test_unresolved_settings_and_an_empty_catalogue_are_errors(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_codes=None)
    with pytest.raises(ValueError, match=r"tokens\.num_codes is None"):
        build_tokens(split_of(), Graph(), config, tmp_path)
    with pytest.raises(ValueError, match="has no items"):
        build_tokens(split_of(0), Graph(), CONFIG, tmp_path)


def test_an_embedding_with_nan_names_the_item(tmp_path: Path) -> None:
    rows = np.ones((4, 2), dtype=np.float32)
    rows[2, 1] = np.nan
    config = dataclasses.replace(CONFIG, source="embedding")
    with pytest.raises(ValueError, match="item 2 holds NaN"):
        build_tokens(split_of(4, embedding=rows), None, config, tmp_path / "tokens")


def test_an_infinite_embedding_is_refused_before_it_is_normalised() -> None:
    rows = np.ones((4, 2), dtype=np.float32)
    rows[1, 0] = np.inf
    config = dataclasses.replace(CONFIG, source="embedding")
    with pytest.raises(ValueError, match="item 1 holds NaN or infinity"):
        item_embedding(split_of(4, embedding=rows).catalogue, None, config)


@pytest.mark.parametrize("name", ["tokens.parquet", "codebook.safetensors"])
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    build_tokens(split_of(), Graph(), CONFIG, tmp_path / "tokens")
    path = tmp_path / "tokens" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} was changed or damaged"):
        load_tokens(tmp_path / "tokens")


def test_codes_that_two_items_share_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unresolved(codes_NL, num_codes: int, _) -> tuple[ItemTokens, Collisions]:
        tokens = ItemTokens(codes_NL=np.zeros_like(codes_NL), num_codes=num_codes)
        return tokens, Collisions(colliding=0, moved_L=(0, 0, 0))

    monkeypatch.setattr(module, "resolve_collisions", unresolved)
    with pytest.raises(ValueError, match="items 0 and 1 share the codes"):
        build_tokens(split_of(), Graph(), CONFIG, tmp_path / "tokens")
    assert not list(tmp_path.iterdir())


def test_codes_that_two_items_share_are_not_read_though_their_sums_fit(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tokens"
    build_tokens(split_of(), Graph(), CONFIG, folder)
    path = folder / "tokens.parquet"
    table = pq.read_table(path)
    same = pa.array([[1, 2, 3]] * NUM_ITEMS, table.schema.field("codes").type)
    table = table.set_column(1, table.schema.field("codes"), same)
    pq.write_table(table, path, write_page_checksum=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][path.name] = sha256_file(path)
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match=r"items 0 and 1 share the codes \[1, 2, 3\]"):
        load_tokens(folder)


def test_a_page_of_the_codes_is_verified_though_the_sums_fit(
    tmp_path: Path, flip_in_page
) -> None:
    folder = tmp_path / "tokens"
    build_tokens(split_of(), Graph(), CONFIG, folder)
    path = folder / "tokens.parquet"
    flip_in_page(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][path.name] = sha256_file(path)
    write_sealed(folder / "manifest.json", manifest)
    with pytest.raises(OSError, match="CRC"):
        load_tokens(folder)


def test_missing_or_foreign_files_are_errors(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    with pytest.raises(FileNotFoundError, match="no item tokens"):
        load_tokens(folder)
    build_tokens(split_of(), Graph(), CONFIG, folder)
    (folder / "quality.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"quality\.png is missing"):
        load_tokens(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 9}))
    with pytest.raises(ValueError, match="format_version 9"):
        load_tokens(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        load_tokens(folder)
