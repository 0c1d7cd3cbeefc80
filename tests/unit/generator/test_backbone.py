"""The backbone: causal, blind to its neighbours in a batch, relative in place."""

import pytest
import torch
from torch import Tensor

from sgrec_torchrec.generator import backbone as module
from sgrec_torchrec.generator.backbone import Backbone, rotary_angles, rotate
from sgrec_torchrec.generator.noise import hash_dropout

DIM = 16


def make_backbone(dropout: float = 0.3, num_layers: int = 2) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(dim=DIM, num_layers=num_layers, num_heads=2, dropout=dropout)
    return backbone.double()


def inputs(num_positions: int, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    input_TD = torch.randn(num_positions, DIM, generator=generator).double()
    return input_TD, torch.randint(2**62, (num_positions,), generator=generator)


@pytest.mark.parametrize("with_noise", [False, True])
def test_a_later_event_changes_nothing_before_it(with_noise: bool) -> None:
    backbone = make_backbone()
    input_TD, key_T = inputs(12)
    offsets = torch.tensor([0, 5, 12])
    noise = key_T if with_noise else None
    before = backbone(input_TD, offsets, noise)
    changed = input_TD.clone()
    changed[9] += 1.0
    after = backbone(changed, offsets, noise)
    assert torch.equal(after[:9], before[:9])
    assert ((after[9:] - before[9:]).abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("with_noise", [False, True])
def test_a_history_in_another_batch_has_the_same_hidden_vectors(
    with_noise: bool,
) -> None:
    backbone = make_backbone()
    input_TD, key_T = inputs(20)
    noise_T = key_T if with_noise else None
    whole = backbone(input_TD, torch.tensor([0, 1, 8, 11, 20]), noise_T)
    rows = slice(1, 8)
    alone = backbone(
        input_TD[rows], torch.tensor([0, 7]), key_T[rows] if with_noise else None
    )
    torch.testing.assert_close(alone, whole[rows], rtol=1e-10, atol=1e-12)
    longer = torch.cat((inputs(30, seed=2)[0], input_TD[rows]))
    keys = torch.cat((inputs(30, seed=2)[1], key_T[rows])) if with_noise else None
    packed = backbone(longer, torch.tensor([0, 26, 30, 37]), keys)
    torch.testing.assert_close(packed[30:], whole[rows], rtol=1e-10, atol=1e-12)


def test_a_prefix_has_the_hidden_vectors_of_the_whole() -> None:
    backbone = make_backbone()
    input_TD, _ = inputs(9)
    whole = backbone(input_TD, torch.tensor([0, 9]), None)
    prefix = backbone(input_TD[:4], torch.tensor([0, 4]), None)
    torch.testing.assert_close(prefix, whole[:4], rtol=1e-10, atol=1e-12)


def test_dropout_follows_the_keys_and_nothing_else() -> None:
    backbone = make_backbone()
    input_TD, key_T = inputs(6)
    offsets = torch.tensor([0, 6])
    first = backbone(input_TD, offsets, key_T)
    torch.manual_seed(99)
    assert torch.equal(backbone(input_TD, offsets, key_T), first)
    other = backbone(input_TD, offsets, key_T + 1)
    assert (other - first).abs().max() > 1e-3
    plain = make_backbone(dropout=0.0)
    assert torch.equal(plain(input_TD, offsets, key_T), plain(input_TD, offsets, None))


def test_layers_drop_different_channels() -> None:
    # With one salt for all, the same channels would fall out of every branch.
    salts = [layer.salt for layer in make_backbone().layers]
    used = [0, *salts, *(salt + 1 for salt in salts)]
    assert len(set(used)) == 5


def test_dropout_reaches_the_input_and_both_branches_of_every_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    salts: list[int] = []

    def noted(values: Tensor, key_T: Tensor, salt: int, rate: float) -> Tensor:
        salts.append(salt)
        return hash_dropout(values, key_T, salt, rate)

    monkeypatch.setattr(module, "hash_dropout", noted)
    backbone, (input_TD, key_T) = make_backbone(), inputs(6)
    backbone(input_TD, torch.tensor([0, 6]), key_T)
    assert salts == [0, 16, 17, 32, 33]
    salts.clear()
    backbone(input_TD, torch.tensor([0, 6]), None)
    backbone.ends(input_TD, torch.tensor([0, 6]))
    assert salts == []


def test_rotation_makes_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 8, generator=generator).double()
    scores = []
    for place in (0, 3, 11):
        cos_sin = rotary_angles(torch.tensor([place, place + 4]), 8)
        turned_key, turned_query = rotate(torch.cat((key, query)), cos_sin)
        scores.append((turned_query * turned_key).sum())
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores[2], scores[0], rtol=1e-6, atol=1e-6)
    cos_sin = rotary_angles(torch.tensor([0, 1]), 8)
    turned_key, turned_query = rotate(torch.cat((key, query)), cos_sin)
    assert abs((turned_query * turned_key).sum() - scores[0]) > 1e-3


def test_order_of_events_matters() -> None:
    # In one layer only the rotation can tell: attention alone sees a set.
    backbone = make_backbone(num_layers=1)
    input_TD, _ = inputs(6)
    swapped = input_TD[[1, 0, 2, 3, 4, 5]]
    offsets = torch.tensor([0, 6])
    last = backbone(input_TD, offsets, None)[-1]
    assert (backbone(swapped, offsets, None)[-1] - last).abs().max() > 1e-3


@pytest.mark.parametrize("num_layers", [1, 3])
def test_reading_gives_what_is_known_at_the_ends(num_layers: int) -> None:
    backbone = make_backbone(num_layers=num_layers)
    # Lengths that fall into several groups, one of them padded.
    offsets = torch.tensor([0, 17, 18, 33, 36, 50])
    input_TD, _ = inputs(50)
    whole = backbone(input_TD, offsets, None)
    ends, keep = backbone.read(input_TD, offsets)
    torch.testing.assert_close(ends, whole[offsets[1:] - 1], rtol=1e-9, atol=1e-11)
    assert [tuple(kept.shape) for kept in keep] == [(50, 2, 2, DIM // 2)] * num_layers


@pytest.mark.parametrize("cut", [(1, 4, 3), (8, 1, 1)])
def test_going_on_from_kept_keys_equals_starting_over(cut: tuple[int, ...]) -> None:
    backbone = make_backbone()
    lengths, input_TD = (9, 5, 4), inputs(18)[0]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    starts = [end - length for end, length in zip(ends, lengths, strict=True)]
    whole = backbone(input_TD, torch.tensor([0, *ends]), None)
    _, keep = backbone.read(input_TD, torch.tensor([0, *ends]))
    kept = torch.stack(keep)
    past = [
        kept[:, start : start + old] for start, old in zip(starts, cut, strict=True)
    ]
    new = [
        torch.arange(start + old, end)
        for start, old, end in zip(starts, cut, ends, strict=True)
    ]
    offsets = torch.tensor([0, *(len(rows) for rows in new)]).cumsum(0)
    rows_T = torch.cat(new)
    hidden_TD, grown = backbone.extend(input_TD[rows_T], offsets, past)
    torch.testing.assert_close(hidden_TD, whole[rows_T], rtol=1e-9, atol=1e-11)
    for start, end, one in zip(starts, ends, grown, strict=True):
        torch.testing.assert_close(one, kept[:, start:end], rtol=1e-9, atol=1e-11)
