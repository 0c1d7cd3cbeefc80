"""Batches against a slow reference per event, and their sameness over world sizes."""

import dataclasses
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from sgrec_torchrec.config import GeneratorConfig, LogConfig, PretrainConfig, RunConfig
from sgrec_torchrec.logs.sampling import epoch_order
from sgrec_torchrec.logs.stream import TrainStream, eval_batches
from sgrec_torchrec.schema import EvalRows

NUM_ITEMS, NUM_CODES, NUM_LEVELS = 7, 4, 2
CODES = np.random.default_rng(5).integers(0, NUM_CODES, (NUM_ITEMS, NUM_LEVELS))
CODES = CODES.astype(np.int32)
KEYS = ["item", "code_0", "code_1", "gap", "event", "value"]


def make_config(*, batch=4, max_history=6, fit_on="train"):
    return RunConfig(
        name="x",
        seed=3,
        log=LogConfig(max_history=max_history, fit_on=fit_on),
        pretrain=PretrainConfig(
            global_batch_size=batch, teacher_weight=0.5, teacher_samples=2
        ),
    )


def make_stream(split, config, soft_targets=None, rank=0, world_size=1):
    return TrainStream(split, CODES, NUM_CODES, config, soft_targets, rank, world_size)


def reference_features(split, user, start, end):
    """Ids of each key for the begin marker and events [start, end), in Python."""
    s = split.sequences
    first = s.offsets_U1[user]
    columns = {key: [0] for key in KEYS}
    for local in range(start, end):
        row = first + local
        item = int(s.items_R[row])
        columns["item"].append(item + 1)
        for level in range(NUM_LEVELS):
            code = level * NUM_CODES + int(CODES[item, level]) + 1
            columns[f"code_{level}"].append(code)
        gap = 0
        if local > start:
            seconds = int(s.timestamps_R[row] - s.timestamps_R[row - 1])
            gap = 1 + math.floor(math.log2(1 + seconds))
        columns["gap"].append(gap)
        columns["event"].append(int(s.events_R[row]) + 1)
        value = float(s.values_R[row])
        if math.isnan(value):
            bucket = 0
        else:
            bucket = 1 if value < 1 else 2 + math.floor(math.log2(value))
        columns["value"].append(bucket)
    return columns


def unpack(batch):
    """Per sequence of a batch: its ids by key, position keys, and targets."""
    features = batch.features
    lengths = features.lengths().view(len(KEYS), -1)
    assert features.keys() == KEYS
    assert (lengths == lengths[0]).all()
    offsets = [0, *np.cumsum(lengths[0].tolist()).tolist()]
    sequences = []
    for first, last in pairwise(offsets):
        is_mine = (batch.target_context_S >= first) & (batch.target_context_S < last)
        rows = zip(
            (batch.target_context_S[is_mine] - first).tolist(),
            batch.target_item_S[is_mine].tolist(),
            batch.target_weight_S[is_mine].tolist(),
            strict=True,
        )
        columns = tuple(
            tuple(features[key].values()[first:last].tolist()) for key in KEYS
        )
        keys = tuple(batch.position_key_T[first:last].tolist())
        sequences.append((columns, keys, tuple(sorted(rows))))
    return sequences


@pytest.mark.parametrize("fit_on", ["train", "train+valid"])
@pytest.mark.parametrize("max_history", [1, 6, 100])
def test_batches_equal_the_reference(make_split, fit_on, max_history):
    split = make_split()
    config = make_config(max_history=max_history, fit_on=fit_on)
    stream = make_stream(split, config)
    s = split.sequences
    ends = s.train_end_U if fit_on == "train" else s.valid_end_U
    asked = Counter()
    samples = epoch_order(stream.num_samples, config.seed, 2).tolist()
    for batch in stream.batches(epoch=2):
        found = unpack(batch)
        for columns, _, targets in found:
            sample = samples.pop(0)
            user = int(stream.windows.user_W[sample])
            start = int(stream.windows.start_W[sample])
            end = int(stream.windows.end_W[sample])
            times = s.timestamps_R[s.offsets_U1[user] :][: ends[user]]
            wanted = []
            for event in range(int(stream.windows.first_target_W[sample]), end):
                context = max(int((times < times[event]).sum()) - start, 0)
                item = int(s.items_R[s.offsets_U1[user] + event])
                wanted.append((context, item, 1.0))
                asked[user, event] += 1
                # nothing at or after the target's timestamp up to its context
                shown = times[start : start + context]
                assert (shown < times[event]).all()
            assert targets == tuple(sorted(wanted))
            shown_end = start + max(context for context, _, _ in wanted)
            reference = reference_features(split, user, start, shown_end)
            assert columns == tuple(tuple(reference[key]) for key in KEYS)
            assert len(columns[0]) <= max_history + 1
    assert not samples
    wanted_events = {(u, e) for u in range(len(ends)) for e in range(ends[u])}
    assert asked == dict.fromkeys(wanted_events, 1)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("is_taught", [False, True])
def test_union_of_ranks_is_the_same_for_any_world_size(
    make_split, make_soft_targets, batch_size, is_taught
):
    split, config = make_split(), make_config(batch=batch_size)
    taught = make_soft_targets(split) if is_taught else None
    whole = list(make_stream(split, config, taught).batches(epoch=1))
    for world_size in (2, 4):
        ranks = [
            list(make_stream(split, config, taught, rank, world_size).batches(epoch=1))
            for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {len(whole)}
        for step, one in enumerate(whole):
            parts = [batches[step] for batches in ranks]
            union = Counter()
            for part in parts:
                assert part.features.stride() >= 1
                if part.target_weight_S.any():
                    union.update(unpack(part))
                assert part.loss_scale.item() == pytest.approx(
                    world_size * one.loss_scale.item(), rel=1e-6
                )
            assert union == Counter(unpack(one))


@pytest.mark.parametrize("is_taught", [False, True])
def test_scaled_weights_of_all_ranks_average_to_one(
    make_split, make_soft_targets, is_taught
):
    split = make_split()
    taught = make_soft_targets(split) if is_taught else None
    streams = [make_stream(split, make_config(), taught, rank, 3) for rank in range(3)]
    for parts in zip(*(stream.batches(0) for stream in streams), strict=True):
        total = sum(part.loss_scale * part.target_weight_S.sum() for part in parts)
        assert total.item() / 3 == pytest.approx(1.0, rel=1e-5)


def test_a_rank_without_samples_gets_one_begin_marker_of_weight_zero(make_split):
    config = make_config(batch=2)
    batch = next(make_stream(make_split(), config, rank=4, world_size=5).batches(0))
    assert unpack(batch) == [(((0,),) * len(KEYS), (0,), ((0, 0, 0.0),))]


def test_resuming_yields_the_rest_of_the_epoch(make_split, make_soft_targets):
    split = make_split()
    stream = make_stream(split, make_config(batch=2), make_soft_targets(split))
    whole = [unpack(batch) for batch in stream.batches(3)]
    assert len(whole) == stream.steps_per_epoch > 3
    assert [unpack(batch) for batch in stream.batches(3, first_step=2)] == whole[2:]


def test_equal_timestamps_of_two_users_are_no_basket(make_split):
    split = make_split(num_users=2)
    sequences = dataclasses.replace(
        split.sequences,
        offsets_U1=np.array([0, 2, 4]),
        items_R=np.array([0, 1, 2, 3], np.int32),
        timestamps_R=np.array([1, 5, 5, 6]),
        train_end_U=np.array([2, 2], np.int32),
    )
    stream = make_stream(
        dataclasses.replace(split, sequences=sequences), make_config(batch=2)
    )
    (batch,) = stream.batches(0)
    targets = sorted(targets for _, _, targets in unpack(batch))
    assert targets == [((0, 0, 1.0), (1, 1, 1.0)), ((0, 2, 1.0), (1, 3, 1.0))]


def test_no_position_of_two_epochs_shares_its_noise(make_split):
    stream = make_stream(make_split(), make_config(batch=100))
    first, second = (next(stream.batches(epoch)).position_key_T for epoch in (0, 1))
    assert not set(first.tolist()) & set(second.tolist())
    assert len(set(first.tolist())) == len(first)


@pytest.mark.parametrize("world_size", [1, 2, 4, 40])
def test_eval_batches_hold_every_row_once_in_step_on_all_ranks(make_split, world_size):
    split = make_split()
    s = split.sequences
    generator = np.random.default_rng(2)
    users = generator.integers(0, s.num_users, 13)
    end_E = generator.integers(0, np.diff(s.offsets_U1)[users] + 1)
    rows = EvalRows(
        user_E=users,
        history_start_E=np.maximum(end_E - 5, 0).astype(np.int32),
        history_end_E=end_E.astype(np.int32),
        target_E=generator.integers(0, NUM_ITEMS, 13, dtype=np.int32),
        target_timestamp_E=np.zeros(13, np.int64),
    )
    found, sizes = [], []
    for rank in range(world_size):
        batches = list(
            eval_batches(
                s,
                rows,
                CODES,
                NUM_CODES,
                GeneratorConfig(),
                batch_size=3,
                rank=rank,
                world_size=world_size,
            )
        )
        sizes.append([batch.features.stride() for batch in batches])
        for batch in batches:
            lengths = batch.features.lengths().view(len(KEYS), -1)[0].tolist()
            offsets = np.append(0, np.cumsum(lengths))
            for place, row in enumerate(batch.row_B.tolist()):
                span = slice(offsets[place], offsets[place + 1])
                ids = {k: batch.features[k].values()[span].tolist() for k in KEYS}
                seen = batch.seen_items_P[
                    batch.seen_offsets_B1[place] : batch.seen_offsets_B1[place + 1]
                ].tolist()
                if row < 0:
                    assert ids == {key: [0] for key in KEYS}
                    assert seen == []
                    continue
                found.append(row)
                user, start, end = users[row], rows.history_start_E[row], end_E[row]
                assert ids == reference_features(split, user, start, end)
                assert batch.target_B[place] == rows.target_E[row]
                first = s.offsets_U1[user]
                assert seen == s.items_R[first : first + end].tolist()
    assert sorted(found) == list(range(13))
    assert all(size == sizes[0] for size in sizes)


def test_seen_items_are_all_before_the_target_padded_row_by_row(make_split):
    split = make_split(seed=1)
    s = split.sequences
    users = np.argsort(-np.diff(s.offsets_U1))[:4]
    end_E = np.array([0, 9, 3, 5])
    rows = EvalRows(
        user_E=users,
        history_start_E=np.maximum(end_E - 2, 0).astype(np.int32),
        history_end_E=end_E.astype(np.int32),
        target_E=np.zeros(4, np.int32),
        target_timestamp_E=np.zeros(4, np.int64),
    )
    (batch,) = eval_batches(
        s, rows, CODES, NUM_CODES, GeneratorConfig(), batch_size=9, world_size=1
    )
    seen_BH = batch.seen_item_BH()
    assert seen_BH.shape == (4, 9)
    assert seen_BH.dtype == batch.target_B.dtype
    for place, (user, end) in enumerate(zip(users, end_E, strict=True)):
        # also what is older than the two events that are shown
        items = s.items_R[s.offsets_U1[user] :][:end].tolist()
        assert seen_BH[place].tolist() == items + [-1] * (9 - end)


def test_nobody_has_seen_anything_is_a_table_without_columns(make_split):
    split = make_split()
    nothing = np.zeros(2, np.int32)
    rows = EvalRows(
        user_E=np.array([1, 2]),
        history_start_E=nothing,
        history_end_E=nothing,
        target_E=nothing,
        target_timestamp_E=np.zeros(2, np.int64),
    )
    (batch,) = eval_batches(
        split.sequences, rows, CODES, NUM_CODES, GeneratorConfig(), batch_size=2
    )
    assert batch.seen_item_BH().shape == (2, 0)


def test_codes_of_another_catalogue_are_an_error(make_split):
    with pytest.raises(ValueError, match="describe 6 items, the split has 7"):
        TrainStream(make_split(), CODES[:6], NUM_CODES, make_config())


def test_a_rank_outside_the_world_is_an_error(make_split):
    with pytest.raises(ValueError, match=r"rank 2 is outside \[0, 2\)"):
        make_stream(make_split(), make_config(), rank=2, world_size=2)


@pytest.mark.parametrize(
    ("codes", "rank", "message"),
    [
        (CODES[:6], 0, "describe 6 items, the split has 7"),
        (CODES, 2, r"rank 2 is outside \[0, 2\)"),
    ],
)
def test_eval_batches_of_another_catalogue_or_world_are_an_error(
    make_split, codes, rank, message
):
    split = make_split()
    batches = eval_batches(
        *(split.sequences, split.test, codes, NUM_CODES, GeneratorConfig()),
        batch_size=2,
        rank=rank,
        world_size=2,
    )
    with pytest.raises(ValueError, match=message):
        next(batches)


def test_an_unresolved_batch_size_is_an_error(make_split):
    with pytest.raises(ValueError, match=r"pretrain\.global_batch_size is None"):
        make_stream(make_split(), make_config(batch=None))


def test_a_train_period_without_events_is_an_error(make_split):
    split = make_split()
    nothing = np.zeros(split.sequences.num_users, np.int32)
    sequences = dataclasses.replace(split.sequences, train_end_U=nothing)
    with pytest.raises(ValueError, match="training period holds no event"):
        make_stream(dataclasses.replace(split, sequences=sequences), make_config())
