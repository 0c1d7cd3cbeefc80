import pytest
import torch
from torchrec import EmbeddingCollection, EmbeddingConfig

from sgrec_torchrec.distributed import table_init
from sgrec_torchrec.distributed.table_init import init_tables

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Reference in Python integers, after Steele, Lea and Flood (2014)."""
    state ^= state >> 30
    state = state * 0xBF58476D1CE4E5B9 & MASK
    state ^= state >> 27
    state = state * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def table_of(
    seed: int, name: str, num_rows: int, dim: int, bound: float | None = None
) -> torch.Tensor:
    """A whole table, as ``init_tables`` fills it."""
    config = EmbeddingConfig(
        name=name,
        num_embeddings=num_rows,
        embedding_dim=dim,
        feature_names=[name],
        weight_init_min=None if bound is None else -bound,
        weight_init_max=bound,
    )
    module = EmbeddingCollection(tables=[config])
    init_tables(module, seed)
    return module.embeddings[name].weight.detach()


def rows_of(first_row: int, num_rows: int, dim: int) -> torch.Tensor:
    """Rows of a shard of a table "item" of seed 0 and bound 1."""
    config = EmbeddingConfig(
        name="item",
        num_embeddings=first_row + num_rows,
        embedding_dim=dim,
        feature_names=["item"],
        weight_init_min=-1.0,
        weight_init_max=1.0,
    )
    shard = torch.empty(num_rows, dim)
    table_init._fill_shard(shard, config, 0, (first_row, 0))
    return shard


def test_every_element_equals_a_slow_reference():
    first_row, dim, bound = 5, 6, 0.25
    table = table_of(3, "item", 9, dim, bound)[first_row:]
    start = table_init._table_key(3, "item")
    for row in range(4):
        for column in range(6):
            index = (first_row + row) * dim + column + 1
            bits = splitmix64((start + index * 0x9E3779B97F4A7C15) & MASK) >> 40
            expected = (2 * bits + 1 - 2**24) * (bound / 2**24)
            assert table[row, column].item() == pytest.approx(expected, rel=1e-6)


def test_rows_do_not_depend_on_where_a_shard_begins(monkeypatch):
    whole = table_of(0, "item", 100, 8, 1.0)
    monkeypatch.setattr(table_init, "CHUNK_ELEMENTS", 24)
    pieces = [rows_of(first, 25, 8) for first in (0, 25, 50, 75)]
    assert torch.equal(torch.cat(pieces), whole)


def test_rows_far_down_a_large_table_are_distinct():
    far = rows_of(10**11, 64, 64)
    assert far.unique().numel() > 4090
    assert not torch.equal(far, rows_of(0, 64, 64))


def test_values_are_uniform_inside_the_bound():
    values = table_of(1, "item", 4000, 64, 0.5)
    assert values.dtype == torch.float32
    assert values.abs().max() < 0.5
    # Mean 0 and variance bound^2 / 3, to 5 standard errors of 256,000 draws.
    assert abs(values.mean()) < 5 * 0.5 / 3**0.5 / 256_000**0.5
    assert values.var().item() == pytest.approx(0.25 / 3, rel=0.01)
    counts = torch.histc(values, bins=16, min=-0.5, max=0.5)
    assert ((counts - 16_000).abs() < 5 * 16_000**0.5).all()


@pytest.mark.parametrize("other", [(1, "item"), (0, "code")])
def test_seeds_and_tables_are_unrelated(other):
    first = table_of(0, "item", 2000, 8, 1.0).flatten()
    second = table_of(*other, 2000, 8, 1.0).flatten()
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.04


def test_unsharded_table_gets_the_default_bound():
    expected = table_of(2, "item", 25, 4, 0.2)  # sqrt(1 / 25)
    assert torch.equal(table_of(2, "item", 25, 4), expected)


def test_asymmetric_range_is_refused():
    config = EmbeddingConfig(
        name="item",
        num_embeddings=25,
        embedding_dim=4,
        feature_names=["item"],
        weight_init_min=0.0,
        weight_init_max=1.0,
    )
    with pytest.raises(ValueError, match="table item: weight_init_min"):
        init_tables(EmbeddingCollection(tables=[config]), seed=2)


def test_columns_of_a_column_wise_shard_match_the_whole_table():
    whole = table_of(0, "item", 25, 4)
    right = torch.empty(10, 2)
    config = EmbeddingConfig(
        name="item", num_embeddings=25, embedding_dim=4, feature_names=["item"]
    )
    table_init._fill_shard(right, config, 0, (5, 2))
    assert torch.equal(right, whole[5:15, 2:])
