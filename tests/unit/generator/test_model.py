"""The whole generator: its loss by hand, its noise, histories without events."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.distributed.optimizer import build_optimizer, set_learning_rates
from sgrec_torchrec.distributed.sharding import shard
from sgrec_torchrec.generator.decoder import item_logprob
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.token_batch import TokenBatch
from sgrec_torchrec.schema import StepOutput, feature_names

NUM_CODES, NUM_LEVELS, NUM_ITEMS = 5, 3, 30


def make_generator(dropout: float = 0.0) -> Generator:
    generator = np.random.default_rng(0)
    flat = generator.choice(NUM_CODES**NUM_LEVELS, NUM_ITEMS, replace=False)
    codes = np.stack(np.unravel_index(flat, [NUM_CODES] * NUM_LEVELS), axis=1)
    torch.manual_seed(0)
    config = GeneratorConfig(
        dim=8, num_layers=2, num_heads=2, decoder_width=12, dropout=dropout
    )
    trie = PrefixTrie.build(codes.astype(np.int32), NUM_CODES)
    return Generator(config=config, trie=trie, num_event_types=3)


def make_features(trie: PrefixTrie, histories: list[list[int]]) -> KeyedJaggedTensor:
    """Begin marker, then one position per item; gaps, events and values by place."""
    columns: list[list[int]] = [[] for _ in feature_names(NUM_LEVELS)]
    for history in histories:
        rows = [[0] * len(columns)]
        for place, item in enumerate(history):
            codes = trie.codes_NL[item].tolist()
            shifted = [level * NUM_CODES + code + 1 for level, code in enumerate(codes)]
            rows.append(
                [item + 1, *shifted, place % 7 + 1, place % 3 + 1, place % 5 + 1]
            )
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(values)
    lengths = [len(history) + 1 for history in histories] * len(columns)
    return KeyedJaggedTensor(
        keys=feature_names(NUM_LEVELS),
        values=torch.tensor(columns).flatten(),
        lengths=torch.tensor(lengths, dtype=torch.int32),
    )


def make_batch(
    trie: PrefixTrie,
    histories: list[list[int]],
    targets: list[tuple[int, int, float]],
    loss_scale: float,
    first_position: int = 0,
) -> TokenBatch:
    """``targets`` are (position, item, weight); keys count from ``first_position``."""
    num_positions = sum(len(history) + 1 for history in histories)
    contexts, items, weights = zip(*targets, strict=True)
    return TokenBatch(
        features=make_features(trie, histories),
        position_key_T=torch.arange(num_positions) + first_position,
        target_context_S=torch.tensor(contexts),
        target_item_S=torch.tensor(items),
        target_weight_S=torch.tensor(weights, dtype=torch.float32),
        loss_scale=torch.tensor(loss_scale, dtype=torch.float32),
    )


HISTORIES = [[4, 9, 4], [], [1, 2, 3, 4, 5]]
TARGETS = [(0, 4, 1.0), (1, 9, 1.0), (1, 7, 0.25), (4, 0, 1.0), (9, 29, 0.5)]


def rms_norm(rows: Tensor) -> Tensor:
    return rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def slow_hidden(model: Generator, histories: list[list[int]]) -> Tensor:
    """The backbone of each sequence alone, position by position, gains being 1."""
    hidden = []
    for history in histories:
        features = make_features(model.tower.trie, [history])
        state = torch.zeros(len(history) + 1, 8, dtype=torch.float32)
        for key, jagged in features.to_dict().items():
            name = "code" if key.startswith("code") else key
            state = state + model.tables.embeddings[name].weight[jagged.values()]
        state = rms_norm(state)
        for layer in model.tower.backbone.layers:
            state = slow_layer(layer, state)
        hidden.append(rms_norm(state))
    return torch.cat(hidden)


def slow_layer(layer: torch.nn.Module, state: Tensor) -> Tensor:
    mixed = rms_norm(state) @ layer.query_key_value.weight.T
    query, key, value = mixed.chunk(3, dim=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        turned_query, turned_key = turn(query[:, head]), turn(key[:, head])
        scores = turned_query @ turned_key.T / 2.0  # sqrt of a head's width, 4
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ value[:, head])
    state = state + torch.cat(heads, dim=1) @ layer.attention_out.weight.T
    gate, up = (rms_norm(state) @ layer.feed_in.weight.T).chunk(2, dim=1)
    return state + (gate / (1 + (-gate).exp()) * up) @ layer.feed_out.weight.T


def turn(rows: Tensor) -> Tensor:
    """Channels (0, 2) and (1, 3) as complex numbers, turned by place * 10000^-c/2."""
    number = torch.complex(rows[:, :2].contiguous(), rows[:, 2:].contiguous())
    angle = torch.arange(len(rows))[:, None] * torch.tensor([1.0, 0.01])
    turned = number * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=1)


def test_loss_equals_a_reference_by_hand() -> None:
    model = make_generator().eval()
    batch = make_batch(model.tower.trie, HISTORIES, TARGETS, loss_scale=0.7)
    loss, output = model(batch)
    hidden_TD = slow_hidden(model, HISTORIES)
    by_level = torch.zeros(NUM_LEVELS, dtype=torch.float32)
    for context, item, weight in TARGETS:
        logprob_L = item_logprob(
            model.tower.decoder,
            model.tower.trie,
            hidden_TD,
            torch.tensor([context]),
            torch.tensor([item]),
        )[0]
        by_level = by_level - 0.7 * weight * logprob_L
    torch.testing.assert_close(output.level_loss_L, by_level, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, by_level.sum(), rtol=1e-5, atol=1e-6)


def test_loss_scales_with_weights_and_loss_scale() -> None:
    model = make_generator().eval()
    trie = model.tower.trie
    plain, _ = model(make_batch(trie, HISTORIES, TARGETS, 1.0))
    doubled = [(context, item, 2 * weight) for context, item, weight in TARGETS]
    both, _ = model(make_batch(trie, HISTORIES, doubled, 0.5))
    torch.testing.assert_close(both, plain)
    silent = [*TARGETS, (2, 3, 0.0)]
    torch.testing.assert_close(
        model(make_batch(trie, HISTORIES, silent, 1.0))[0], plain
    )


def gradients(model: Generator, batches: list[TokenBatch]) -> tuple[Tensor, list]:
    model.zero_grad()
    total = sum(model(batch)[0] for batch in batches)
    total.backward()
    return total.detach(), [one.grad for one in model.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_batch_split_in_two_has_the_same_loss_and_gradients(dropout: float) -> None:
    model = make_generator(dropout).train()
    trie = model.tower.trie
    whole = make_batch(trie, HISTORIES, TARGETS, 0.3)
    first = make_batch(trie, HISTORIES[:2], TARGETS[:4], 0.3)
    second = make_batch(trie, HISTORIES[2:], [(4, 29, 0.5)], 0.3, first_position=5)
    loss, gradient = gradients(model, [whole])
    split_loss, split_gradient = gradients(model, [first, second])
    torch.testing.assert_close(split_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(split_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_dropout_acts_in_training_alone_and_follows_the_keys() -> None:
    model = make_generator(0.4)
    batch = make_batch(model.tower.trie, HISTORIES, TARGETS, 1.0)
    other = make_batch(model.tower.trie, HISTORIES, TARGETS, 1.0, first_position=100)
    model.train()
    noisy, _ = model(batch)
    assert model(batch)[0] == noisy
    assert abs(model(other)[0] - noisy) > 1e-4
    model.eval()
    assert model(batch)[0] == model(other)[0]
    plain = make_generator(0.0).eval()
    assert model(batch)[0] == plain(batch)[0]


def test_every_parameter_receives_a_gradient() -> None:
    model = make_generator(0.2).train()
    batch = make_batch(model.tower.trie, HISTORIES, TARGETS, 1.0)
    model(batch)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_encode_last_is_the_hidden_vector_after_the_whole_history() -> None:
    model = make_generator(0.4).train()
    hidden_BD = model.encode_last(make_features(model.tower.trie, HISTORIES))
    slow_TD = slow_hidden(model, HISTORIES)
    torch.testing.assert_close(hidden_BD, slow_TD[[3, 4, 10]], rtol=1e-5, atol=1e-6)


def test_a_history_of_the_begin_marker_alone_works() -> None:
    model = make_generator().eval()
    trie = model.tower.trie
    alone = model.encode_last(make_features(trie, [[]]))
    packed = model.encode_last(make_features(trie, [[3, 1], [], [2]]))
    assert alone.isfinite().all()
    torch.testing.assert_close(packed[1:2], alone, rtol=1e-5, atol=1e-6)
    loss, _ = model(make_batch(trie, [[]], [(0, 11, 1.0)], 1.0))
    loss.backward()
    used = model.tables.embeddings["item"].weight.grad
    assert used[0].abs().sum() > 0
    assert used[1:].abs().sum() == 0


def test_item_code_gap_event_and_value_all_reach_the_hidden_vector() -> None:
    model = make_generator().eval()
    features = make_features(model.tower.trie, [[4, 9, 2]])
    before = model.encode_last(features)
    num_positions = 4
    for place, key in enumerate(features.keys()):
        values = features.values().clone()
        last = (place + 1) * num_positions - 1
        values[last] = values[last] - 1 if values[last] > 1 else values[last] + 1
        changed = KeyedJaggedTensor(
            keys=features.keys(), values=values, lengths=features.lengths()
        )
        after = model.encode_last(changed)
        assert (after - before).abs().max() > 1e-4, key


@dataclass
class FrozenTables:
    """A batch of ``make_batch`` whose tables must stay."""

    features: KeyedJaggedTensor
    position_key_T: Tensor
    target_context_S: Tensor
    target_item_S: Tensor
    output: Callable[[Tensor, int], StepOutput]
    trains_tables: bool = False
    asks_ends: bool = False


def frozen_batch(trie: PrefixTrie) -> FrozenTables:
    batch = make_batch(trie, HISTORIES, TARGETS, 1.0)
    return FrozenTables(
        features=batch.features,
        position_key_T=batch.position_key_T,
        target_context_S=batch.target_context_S,
        target_item_S=batch.target_item_S,
        output=batch.output,
    )


def test_frozen_tables_get_no_gradient_and_all_else_gets_the_same() -> None:
    model = make_generator(0.2).train()
    trie = model.tower.trie
    loss, gradient = gradients(model, [make_batch(trie, HISTORIES, TARGETS, 1.0)])
    frozen_loss, frozen = gradients(model, [frozen_batch(trie)])
    torch.testing.assert_close(frozen_loss, loss, rtol=0, atol=0)
    names = [name for name, _ in model.named_parameters()]
    assert any(name.startswith("tables.") for name in names)
    for name, ours, theirs in zip(names, frozen, gradient, strict=True):
        if name.startswith("tables."):
            assert ours is None, name
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_asking_the_ends_learns_the_same_as_asking_their_positions() -> None:
    model = make_generator()
    trie = model.tower.trie
    # Begin marker and 3 events, begin marker alone, begin marker and 5 events.
    ends, asked = [3, 4, 10], [(2, 4), (0, 9), (0, 7), (1, 29)]
    by_position = make_batch(
        trie, HISTORIES, [(ends[row], item, 1.0) for row, item in asked], 1.0
    )
    by_history = replace(
        by_position,
        target_context_S=torch.tensor([row for row, _ in asked]),
        asks_ends=True,
    )
    loss, gradient = gradients(model, [by_position])
    ends_loss, ends_gradient = gradients(model, [by_history])
    torch.testing.assert_close(ends_loss, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ends_gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_sharded_tables_are_updated_in_backward_unless_frozen(
    world_of_one, is_frozen: bool
) -> None:
    trie = make_generator().tower.trie
    batch = (
        frozen_batch(trie) if is_frozen else make_batch(trie, HISTORIES, TARGETS, 1.0)
    )
    with process_group(device="cpu") as ranks:
        dmp = shard(
            make_generator(),
            device=ranks.device,
            batch_size_per_rank=4,
            table_lr=0.5,
            seed=0,
        )
        optimizer = build_optimizer(dmp, dense_lr=0.01, weight_decay=0.0)
        before = whole_weights(dmp)
        for _ in range(2):
            set_learning_rates(optimizer, 0.01, 0.5)
            optimizer.zero_grad()
            dmp(batch)[0].backward()
            optimizer.step()
        after = whole_weights(dmp)
    for name, weight in before.items():
        is_table = name.startswith("tables.")
        assert torch.equal(after[name], weight) == (is_table and is_frozen), name


def whole_weights(dmp: DistributedModelParallel) -> dict[str, Tensor]:
    """On one rank: copies of all weights."""
    return {
        name: torch.cat([part.tensor for part in value.local_shards()])
        if hasattr(value, "local_shards")
        else value.clone()
        for name, value in dmp.state_dict().items()
    }
