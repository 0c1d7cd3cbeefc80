import pytest
import torch
from torchrec import EmbeddingCollection, EmbeddingConfig

from sgrec_torchrec.distributed import table_init
from sgrec_torchrec.distributed.table_init import hashed_uniform, init_tables

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Reference in Python integers, after Steele, Lea and Flood (2014)."""
    state ^= state >> 30
    state = state * 0xBF58476D1CE4E5B9 & MASK
    state ^= state >> 27
    state = state * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def test_splitmix64_gives_the_published_sequence():
    # First outputs of the generator seeded with 1234567 (Rosetta Code).
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + gamma * (k + 1)) & MASK for k in range(2)]
    signed = [s - (1 << 64) if s >> 63 else s for s in states]
    out = table_init._splitmix64(torch.tensor(signed))
    expected = [6457827717110365317, 3203168211198807973]
    assert [int(x) & MASK for x in out] == expected


def test_every_element_equals_a_slow_reference():
    table, first_row, dim, bound = hashed_uniform(3, "item", 5, 4, 6, 0.25), 5, 6, 0.25
    start = table_init._table_key(3, "item")
    for row in range(4):
        for column in range(6):
            index = (first_row + row) * dim + column + 1
            bits = splitmix64((start + index * 0x9E3779B97F4A7C15) & MASK) >> 40
            expected = (2 * bits + 1 - 2**24) * (bound / 2**24)
            assert table[row, column].item() == pytest.approx(expected, rel=1e-6)


def test_rows_do_not_depend_on_where_a_shard_begins(monkeypatch):
    whole = hashed_uniform(0, "item", 0, 100, 8, 1.0)
    monkeypatch.setattr(table_init, "CHUNK_ELEMENTS", 24)
    pieces = [hashed_uniform(0, "item", first, 25, 8, 1.0) for first in (0, 25, 50, 75)]
    assert torch.equal(torch.cat(pieces), whole)


def test_rows_far_down_a_large_table_are_distinct():
    far = hashed_uniform(0, "item", 10**11, 64, 64, 1.0)
    assert far.unique().numel() > 4090
    assert not torch.equal(far, hashed_uniform(0, "item", 0, 64, 64, 1.0))


def test_values_are_uniform_inside_the_bound():
    values = hashed_uniform(1, "item", 0, 4000, 64, 0.5)
    assert values.dtype == torch.float32
    assert values.abs().max() < 0.5
    # Mean 0 and variance bound^2 / 3, to 5 standard errors of 256,000 draws.
    assert abs(values.mean()) < 5 * 0.5 / 3**0.5 / 256_000**0.5
    assert values.var().item() == pytest.approx(0.25 / 3, rel=0.01)
    counts = torch.histc(values, bins=16, min=-0.5, max=0.5)
    assert ((counts - 16_000).abs() < 5 * 16_000**0.5).all()


@pytest.mark.parametrize("other", [(1, "item"), (0, "code")])
def test_seeds_and_tables_are_unrelated(other):
    first = hashed_uniform(0, "item", 0, 2000, 8, 1.0).flatten()
    second = hashed_uniform(*other, 0, 2000, 8, 1.0).flatten()
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.04


def tables(**settings: float) -> EmbeddingCollection:
    config = EmbeddingConfig(
        name="item",
        num_embeddings=25,
        embedding_dim=4,
        feature_names=["item"],
        **settings,
    )
    return EmbeddingCollection(tables=[config])


def test_unsharded_table_gets_the_default_bound():
    module = tables()
    init_tables(module, seed=2)
    expected = hashed_uniform(2, "item", 0, 25, 4, 0.2)  # sqrt(1 / 25)
    assert torch.equal(module.embeddings["item"].weight, expected)


def test_asymmetric_range_is_refused():
    module = tables(weight_init_min=0.0, weight_init_max=1.0)
    with pytest.raises(ValueError, match="table item: weight_init_min"):
        init_tables(module, seed=2)


def test_columns_of_a_column_wise_shard_match_the_whole_table():
    whole = hashed_uniform(0, "item", 0, 25, 4, 0.2)
    right = torch.empty(10, 2)
    config = tables().embedding_configs()[0]
    table_init._fill_shard(right, config, 0, (5, 2))
    assert torch.equal(right, whole[5:15, 2:])
