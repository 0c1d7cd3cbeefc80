"""Noise by hash: its range, its distribution, and that only keys matter."""

import math

import torch
from scipy import stats

from sgrec_torchrec.generator.noise import hash_dropout, hash_gumbel, hash_uniform

# With 24 bits and this key and salt, column 1 has all bits set, and (2^24 - 1 + 1/2)
# rounds up to 2^24 in float32: a "uniform" of exactly 1, an infinite Gumbel.
KEY_OF_ALL_ONES = 53_529_921


def keys(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-(2**62), 2**62, (count,), generator=generator)


def test_uniform_stays_inside_the_open_interval_where_all_bits_are_set() -> None:
    value = hash_uniform(torch.tensor([KEY_OF_ALL_ONES]), 1, 2)
    assert 0.999 < value[0, 1] < 1.0
    assert hash_gumbel(torch.tensor([KEY_OF_ALL_ONES]), 1, 2).isfinite().all()


def test_uniform_is_the_finaliser_of_splitmix64() -> None:
    # Key 0, salt 0, columns 1 to 3: that generator's first outputs from state 0.
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    expected = [((word & 0x7FFFFF) + 0.5) * 2**-23 for word in outputs]
    assert hash_uniform(torch.tensor([0]), 0, 4)[0, 1:].tolist() == expected


def test_uniform_is_uniform_over_keys_and_over_columns() -> None:
    for key_X in (keys(4000), torch.arange(4000)):
        values = hash_uniform(key_X, 3, 50).double().numpy()
        assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
        assert stats.kstest(values[:, 7], "uniform").pvalue > 1e-3
        assert stats.kstest(values[7], "uniform").pvalue > 1e-3


def test_noise_of_other_salts_columns_and_keys_is_unrelated() -> None:
    values = hash_uniform(torch.arange(4000), 0, 40).double()
    other_salt = hash_uniform(torch.arange(4000), 1, 40).double()
    bound = 5 / math.sqrt(values.numel())
    for first, second in (
        (values, other_salt),
        (values[:, 1:], values[:, :-1]),
        (values[1:], values[:-1]),
    ):
        assert abs(torch.corrcoef(torch.stack((first, second)).flatten(1))[0, 1]) < (
            bound
        )


def test_noise_depends_on_the_key_alone_whatever_the_batch() -> None:
    key_X = keys(60)
    whole = hash_uniform(key_X, 2, 33)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hash_uniform(key_X[order], 2, 33), whole[order])
    assert torch.equal(hash_uniform(key_X.view(6, 10), 2, 33).flatten(0, 1), whole)


def test_gumbel_has_the_standard_gumbel_distribution() -> None:
    values = hash_gumbel(keys(2000), 5, 50).double().numpy()
    assert stats.kstest(values.ravel(), "gumbel_r").pvalue > 1e-3


def test_dropout_zeroes_its_share_and_keeps_the_mean() -> None:
    for rate in (0.1, 0.5, 0.9):
        dropped = hash_dropout(torch.ones(2000, 64), keys(2000), 1, rate)
        is_zero = dropped == 0
        share_error = is_zero.double().mean() - rate
        assert abs(share_error) < 5 * math.sqrt(rate * (1 - rate) / is_zero.numel())
        torch.testing.assert_close(
            dropped[~is_zero], torch.full_like(dropped[~is_zero], 1 / (1 - rate))
        )


def test_dropout_differs_by_column_position_and_salt() -> None:
    first = hash_dropout(torch.ones(200, 64), keys(200), 1, 0.5)
    second = hash_dropout(torch.ones(200, 64), keys(200), 2, 0.5)
    for one, other in (
        (first, second),
        (first[1:], first[:-1]),
        (first[:, 1:], first[:, :-1]),
    ):
        assert abs((one == other).double().mean() - 0.5) < 0.03


def test_dropout_passes_gradient_only_through_what_it_kept() -> None:
    values = torch.ones(20, 16, requires_grad=True)
    dropped = hash_dropout(values, keys(20), 1, 0.25)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_dropout_of_rate_zero_changes_nothing() -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hash_dropout(values, keys(5), 1, 0.0), values)
