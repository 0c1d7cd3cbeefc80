"""Soft targets in a stream's batches: whom they teach, with what weight and items."""

import numpy as np
import pytest
import torch

from sgrec_torchrec.config import LogConfig, PretrainConfig, RunConfig
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS, epoch_order
from sgrec_torchrec.logs.stream import TrainStream

NUM_ITEMS = 7
CODES = np.zeros((NUM_ITEMS, 2), dtype=np.int32)


def make_config(*, batch=4, weight=0.5, samples=2):
    pretrain = PretrainConfig(
        global_batch_size=batch, teacher_weight=weight, teacher_samples=samples
    )
    return RunConfig(name="x", seed=3, log=LogConfig(max_history=6), pretrain=pretrain)


def make_stream(split, config, soft_targets=None):
    return TrainStream(split, CODES, 1, config, soft_targets)


def asked_rows(stream, samples):
    """The targets' rows of the log, in the order of a batch of these samples."""
    windows = stream.windows
    rows = []
    for sample in samples:
        first = stream.offsets_U1[windows.user_W[sample]]
        asked = range(windows.first_target_W[sample], windows.end_W[sample])
        rows += [int(first + event) for event in asked]
    return rows


def test_teacher_shares_the_weight_of_those_targets_that_it_knows(
    make_split, make_soft_targets
):
    split, config = make_split(), make_config(weight=0.4)
    taught = make_soft_targets(split)
    stream = make_stream(split, config, taught)
    plain = make_stream(split, config).batches(0)
    order = epoch_order(stream.num_samples, config.seed, 0)
    items_of = dict(zip(taught.row_E.tolist(), taught.item_EQ.tolist(), strict=True))
    num_taught = num_left = 0
    for step, (batch, without) in enumerate(zip(stream.batches(0), plain, strict=True)):
        rows = asked_rows(stream, order[step * 4 : step * 4 + 4])
        known = [place for place, row in enumerate(rows) if row in items_of]
        context, item, weight = (
            column.numpy()
            for column in (
                batch.target_context_S,
                batch.target_item_S,
                batch.target_weight_S,
            )
        )
        true, drawn = slice(0, len(rows)), slice(len(rows), None)
        assert context[true].tolist() == without.target_context_S.tolist()
        assert item[true].tolist() == without.target_item_S.tolist()
        expected = np.ones(len(rows))
        expected[known] = 0.6
        np.testing.assert_allclose(weight[true], expected, rtol=1e-6)
        # Two draws for each of them, in the same context; 0.6 + 0.2 + 0.2 = 1.
        np.testing.assert_allclose(weight[drawn], [0.2] * (2 * len(known)), rtol=1e-6)
        assert context[drawn].tolist() == np.repeat(context[known], 2).tolist()
        for place, row in enumerate(rows[at] for at in known):
            pair = item[drawn][2 * place : 2 * place + 2].tolist()
            assert set(pair) <= set(items_of[row]) - {-1}
        num_taught += len(known)
        num_left += len(rows) - len(known)
    assert min(num_taught, num_left) > 30


def test_every_epoch_draws_anew(make_split, make_soft_targets):
    split = make_split()
    config = make_config(batch=100, weight=1.0, samples=8)
    stream = make_stream(split, config, make_soft_targets(split))
    drawn = []
    for epoch in (0, 0, 1):
        (batch,) = stream.batches(epoch)
        is_drawn = batch.target_weight_S == 0.125
        drawn.append(sorted(batch.target_item_S[is_drawn].tolist()))
    assert len(drawn[0]) > 100
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("taught", "weight", "samples"), [(False, 0.5, 2), (True, 0.0, 2), (True, 0.5, 0)]
)
def test_without_soft_targets_weight_or_draws_nothing_is_taught(
    make_split, make_soft_targets, taught, weight, samples
):
    split = make_split()
    targets = make_soft_targets(split) if taught else NO_SOFT_TARGETS
    config = make_config(weight=weight, samples=samples)
    plain = make_stream(split, config)
    stream = make_stream(split, config, targets)
    for batch, without in zip(stream.batches(0), plain.batches(0), strict=True):
        for name in ("target_context_S", "target_item_S", "target_weight_S"):
            torch.testing.assert_close(getattr(batch, name), getattr(without, name))


def test_an_unresolved_teacher_weight_is_an_error(make_split):
    with pytest.raises(ValueError, match=r"teacher_weight is None"):
        make_stream(make_split(), make_config(weight=None), NO_SOFT_TARGETS)


def test_an_unresolved_number_of_draws_is_an_error(make_split):
    with pytest.raises(ValueError, match=r"teacher_samples is None"):
        make_stream(make_split(), make_config(samples=None), NO_SOFT_TARGETS)


def test_soft_targets_of_another_catalogue_are_an_error(make_split, make_soft_targets):
    split = make_split()
    taught = make_soft_targets(split)
    taught.item_EQ[3, 1] = NUM_ITEMS
    with pytest.raises(ValueError, match="name item 7, the tokens describe 7: build"):
        make_stream(split, make_config(), taught)
