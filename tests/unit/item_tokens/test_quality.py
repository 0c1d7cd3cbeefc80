"""The quality report against hand-computed figures."""

from pathlib import Path

import numpy as np
import pytest

from sgrec_torchrec.item_tokens import quality as quality_module
from sgrec_torchrec.item_tokens.codebook import Collisions
from sgrec_torchrec.item_tokens.quality import measure_quality, top_neighbours
from sgrec_torchrec.item_tokens.quality_plot import draw_quality
from sgrec_torchrec.schema import ItemTokens


class Graph:
    """Edges in CSR form."""

    def __init__(self, rows: list[dict[int, float]]) -> None:
        self.indptr_N1 = np.cumsum([0, *map(len, rows)]).astype(np.int64)
        self.neighbours_E = np.array([j for row in rows for j in row], np.int32)
        weights = [weight for row in rows for weight in row.values()]
        self.weights_E = np.array(weights, np.float32)


TOKENS = ItemTokens(
    codes_NL=np.array([[0, 0], [0, 1], [0, 2], [1, 0]], dtype=np.int32), num_codes=4
)
GRAPH = Graph([{1: 1.0, 3: 2.0}, {0: 1.0}, {2: 5.0}, {}])
COLLISIONS = Collisions(colliding=2, moved_L=(0, 1))


def test_figures_equal_those_worked_out_by_hand() -> None:
    quality = measure_quality(
        TOKENS, COLLISIONS, GRAPH, source="text", reconstruction_error=0.5
    )
    assert quality.collision_rate_before == 2 / 4
    assert quality.moved_share == 1 / 4
    assert quality.codes_used == [2, 3]
    # level 0: shares 3/4, 1/4; level 1: 1/2, 1/4, 1/4
    level_0 = (4 / 3) ** 0.75 * 4**0.25
    assert quality.perplexity == pytest.approx([level_0, 2**0.5 * 4**0.5])
    assert quality.largest_bucket == [3, 1]
    assert quality.mean_bucket == [4 / 2, 1.0]
    # pairs (0,3) no, (0,1) yes, (1,0) yes; the self-edge of item 2 is left out
    assert quality.neighbours_sharing == pytest.approx([2 / 3])
    # 3 * 2 ordered pairs of 4 * 3
    assert quality.random_sharing == pytest.approx([0.5])


def test_only_the_ten_heaviest_neighbours_count() -> None:
    weights = {j: float(j % 7) for j in range(1, 15)}
    item, other = top_neighbours(Graph([weights, *[{}] * 14]), 15, seed=0)
    assert item.tolist() == [0] * 10
    assert sorted(weights[j] for j in other) == sorted(weights.values())[-10:]


def test_a_large_catalogue_is_sampled_and_keeps_whole_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality_module, "MAX_ASKED", 2)
    rows = [{(n + 1) % 4: 1.0, (n + 2) % 4: 2.0} for n in range(4)]
    item, other = top_neighbours(Graph(rows), 4, seed=0)
    assert len(np.unique(item)) == 2
    assert ((other - item) % 4).tolist() == [2, 1, 2, 1]


def test_without_a_graph_the_agreement_is_zero() -> None:
    quality = measure_quality(
        TOKENS, COLLISIONS, None, source="sid", reconstruction_error=None
    )
    assert quality.neighbours_sharing == [0.0]


@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_the_picture_is_a_png_for_any_number_of_levels(
    tmp_path: Path, num_levels: int
) -> None:
    codes = np.stack([np.arange(4)] * num_levels, axis=1).astype(np.int32)
    tokens = ItemTokens(codes_NL=codes, num_codes=4)
    quality = measure_quality(
        tokens, COLLISIONS, GRAPH, source="text", reconstruction_error=None
    )
    draw_quality(quality, tokens, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
