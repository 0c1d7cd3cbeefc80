"""Collision-free codes: resolving, appending, given IDs, the file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgrec_torchrec.item_tokens.codebook import (
    Codebook,
    append_items,
    cost_from,
    resolve_collisions,
    tokens_from_sid,
)
from sgrec_torchrec.item_tokens.quantizer import quantize
from sgrec_torchrec.schema import ItemTokens


def build(embedding: np.ndarray, num_codes: int, num_levels: int = 3, seed: int = 0):
    codebook, raw = quantize(
        embedding,
        num_levels=num_levels,
        num_codes=num_codes,
        num_iterations=3,
        seed=seed,
    )
    cost_of = cost_from(codebook, embedding)
    return resolve_collisions(raw, num_codes, cost_of)[0], codebook


@st.composite
def embeddings(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Random rows with duplicates and zeros; N from 1 to K^3, also N < K."""
    num_codes = draw(st.integers(2, 5))
    num_items = draw(st.one_of(st.integers(1, num_codes**3), st.just(num_codes**3)))
    seed = draw(st.integers(0, 1000))
    num_distinct = draw(st.integers(1, num_items))
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_distinct, 4)).astype(np.float32)
    if draw(st.booleans()):
        rows[0] = 0
    return rows[generator.integers(0, num_distinct, num_items)], num_codes


@settings(max_examples=40, deadline=None)
@given(embeddings())
def test_any_embedding_gives_distinct_codes_in_range(case) -> None:
    embedding, num_codes = case
    tokens, _ = build(embedding, num_codes)
    tokens.validate()
    assert tokens.codes_NL.dtype == np.int32
    assert len(np.unique(tokens.codes_NL, axis=0)) == len(embedding)


@settings(max_examples=40, deadline=None)
@given(embeddings(), st.data())
def test_appending_never_changes_old_codes(case, data) -> None:
    embedding, num_codes = case
    num_old = data.draw(st.integers(1, len(embedding)))
    tokens, codebook = build(embedding[:num_old], num_codes)
    before = tokens.codes_NL.copy()
    longer = append_items(tokens, codebook, embedding[num_old:])
    longer.validate()
    assert longer.num_items == len(embedding)
    np.testing.assert_array_equal(longer.codes_NL[:num_old], before)


def test_an_appended_item_takes_the_codes_of_its_nearest_centroids() -> None:
    centroids = np.array([[0.0], [10.0], [20.0]], dtype=np.float32)
    fine = np.array([[-1.0], [0.0], [1.0]], dtype=np.float32)
    codebook = Codebook(centroids=(centroids, fine), num_codes=3)
    old = ItemTokens(codes_NL=np.array([[1, 2]], dtype=np.int32), num_codes=3)
    # 10.8 = 10 + 0.8: code (1, 2) is taken, the next nearest last code is 1.
    new = append_items(old, codebook, np.array([[10.8], [19.1]], dtype=np.float32))
    assert new.codes_NL.tolist() == [[1, 2], [1, 1], [2, 0]]


def test_an_appended_item_leaves_a_full_parent() -> None:
    centroids = np.array([[0.0], [10.0]], dtype=np.float32)
    fine = np.array([[-1.0], [1.0]], dtype=np.float32)
    codebook = Codebook(centroids=(centroids, fine), num_codes=2)
    old = ItemTokens(codes_NL=np.array([[0, 0], [0, 1]], np.int32), num_codes=2)
    new = append_items(old, codebook, np.array([[0.0]], dtype=np.float32))
    assert new.codes_NL[2].tolist() == [1, 0]


def test_the_best_fitting_item_keeps_its_code() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 1]], dtype=np.int32)
    # At the last level item 0 fits code 0 worse (2) than item 1 (1); the nearest free
    # code of item 0 is 3 (cost 5), for code 1 (cost 3) is taken.
    cost = np.array([[2, 3, 9, 5], [1, 3, 9, 5], [7, 0, 9, 9]], dtype=np.float32)
    tokens, collisions = resolve_collisions(
        codes, 4, lambda level, items, _: cost[items]
    )
    assert tokens.codes_NL.tolist() == [[0, 3], [0, 0], [0, 1]]
    assert collisions.colliding == 2
    assert collisions.moved_L == (0, 1)


def test_an_overfull_parent_sends_an_item_to_another_parent() -> None:
    codes = np.zeros((3, 2), dtype=np.int32)
    tokens, collisions = tokens_from_sid(codes, 2, 2, ["a", "b", "c"])
    # K = 2: parent 0 holds two items, the third one goes to parent 1.
    assert tokens.codes_NL.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert collisions.moved_L == (1, 1)
    assert codes.sum() == 0


def test_given_ids_without_collision_stay_as_they_are() -> None:
    codes = np.random.default_rng(0).permutation(27)[:20]
    sid = np.stack([codes // 9, codes // 3 % 3, codes % 3], axis=1).astype(np.int32)
    tokens, collisions = tokens_from_sid(sid, 3, 3, [str(n) for n in range(20)])
    np.testing.assert_array_equal(tokens.codes_NL, sid)
    assert collisions.colliding == 0
    assert sum(collisions.moved_L) == 0


def test_a_given_id_out_of_range_names_item_and_level() -> None:
    sid = np.array([[0, 1], [0, 9]], dtype=np.int32)
    with pytest.raises(ValueError, match=r"'b'\): code 9 at level 1 is outside \[0, 4"):
        tokens_from_sid(sid, 2, 4, ["a", "b"])


def test_given_ids_of_another_shape_are_an_error() -> None:
    sid = np.zeros((2, 2), dtype=np.int32)
    with pytest.raises(
        ValueError, match=r"column sid: shape \(2, 2\), wanted \(2, 3\)"
    ):
        tokens_from_sid(sid, 3, 4, ["a", "b"])


def test_more_items_than_codes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"5 items do not fit 2\^2"):
        tokens_from_sid(np.zeros((5, 2), np.int32), 2, 2, list("abcde"))


def test_appending_beyond_all_codes_is_an_error() -> None:
    tokens, codebook = build(np.zeros((8, 2), dtype=np.float32), 2)
    with pytest.raises(ValueError, match=r"9 items do not fit 2\^3"):
        append_items(tokens, codebook, np.zeros((1, 2), dtype=np.float32))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((1, 3), np.float32), r"codebook wants \[n, 2\]"),
        (np.full((1, 2), np.inf, np.float32), "item 0 holds NaN or infinity"),
    ],
)
def test_appending_bad_embeddings_is_an_error(rows: np.ndarray, message: str) -> None:
    tokens, codebook = build(np.zeros((4, 2), dtype=np.float32), 2)
    with pytest.raises(ValueError, match=message):
        append_items(tokens, codebook, rows)


def test_a_saved_codebook_comes_back_equal(tmp_path: Path) -> None:
    _, codebook = build(np.eye(12, dtype=np.float32), 8)
    codebook.save(tmp_path / "book.safetensors")
    again = Codebook.load(tmp_path / "book.safetensors")
    assert again.num_codes == 8
    for one, two in zip(codebook.centroids, again.centroids, strict=True):
        np.testing.assert_array_equal(one, two)
    assert [path.name for path in tmp_path.iterdir()] == ["book.safetensors"]


def test_a_missing_or_damaged_codebook_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    with pytest.raises(FileNotFoundError, match="no codebook"):
        Codebook.load(path)
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="damaged or is no codebook"):
        Codebook.load(path)
