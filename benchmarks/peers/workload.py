"""Made-up catalogues, networks and batches of a stated size, for benchmarks.

Letters: N items, L levels, K codes, B sequences, T positions of all sequences.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.token_batch import TokenBatch
from sgrec_torchrec.schema import feature_names

NUM_LEVELS = 3
NUM_EVENT_TYPES = 2
HEAD_GAIN = 6.0


def scattered_sids(num_items: int, num_codes: int) -> npt.NDArray[np.int32]:
    """Distinct SIDs [N, L], scattered over all K^L; K must be a power of two.

    Multiplying by an odd number and folding the high bits back are bijections modulo
    a power of two, so no two items collide.
    """
    num_bits = (num_codes**NUM_LEVELS).bit_length() - 1
    flat = np.arange(num_items, dtype=np.uint64)
    mask = np.uint64((1 << num_bits) - 1)
    for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        flat = flat * np.uint64(factor) & mask
        flat ^= flat >> np.uint64(num_bits // 2)
    powers = num_codes ** np.arange(NUM_LEVELS - 1, -1, -1, dtype=np.uint64)
    return (flat[:, None] // powers % np.uint64(num_codes)).astype(np.int32)


def scattered_trie(num_items: int, num_codes: int) -> PrefixTrie:
    """The trie of ``scattered_sids``."""
    return PrefixTrie.build(scattered_sids(num_items, num_codes), num_codes)


def random_generator(trie: PrefixTrie, config: GeneratorConfig, seed: int) -> Generator:
    """A network of random weights, whose code distributions are as peaked as trained.

    Untrained heads give nearly equal scores, whose order is rounding noise.
    """
    torch.manual_seed(seed)
    generator = Generator(config=config, trie=trie, num_event_types=NUM_EVENT_TYPES)
    with torch.no_grad():
        for head in generator.tower.decoder.heads:
            head.weight.mul_(HEAD_GAIN)
        for table in generator.tables.embeddings.values():
            torch.nn.init.normal_(table.weight, std=0.5)
    return generator


def random_columns(
    trie: PrefixTrie, lengths_B: Tensor, config: GeneratorConfig, noise: torch.Generator
) -> Tensor:
    """int64 [F, T]: random histories of so many events, a begin marker before each."""
    num_positions = int(lengths_B.sum()) + len(lengths_B)
    item_T = torch.randint(trie.num_items, (num_positions,), generator=noise)
    columns = event_columns(trie, item_T, config, noise)
    starts = (lengths_B + 1).cumsum(0) - lengths_B - 1
    columns[:, starts] = 0
    return columns


def event_columns(
    trie: PrefixTrie, item_T: Tensor, config: GeneratorConfig, noise: torch.Generator
) -> Tensor:
    """int64 [F, T]: an event with each item; gap, event type and value are random."""
    codes_TL = trie.codes_NL[item_T].long()
    shift = torch.arange(NUM_LEVELS) * trie.num_codes + 1
    sizes = (config.num_gap_buckets, NUM_EVENT_TYPES + 1, config.num_value_buckets)
    buckets = [
        torch.randint(1, size, (len(item_T),), generator=noise) for size in sizes
    ]
    return torch.stack([item_T + 1, *(codes_TL + shift).unbind(1), *buckets])


def to_features(columns_FT: Tensor, lengths_B: Tensor) -> KeyedJaggedTensor:
    """The columns as ``TokenBatch.features``."""
    keys = feature_names(NUM_LEVELS)
    return KeyedJaggedTensor(
        keys=keys,
        values=columns_FT.flatten(),
        lengths=(lengths_B + 1).int().repeat(len(keys)),
    )


def next_item_batch(
    columns_FT: Tensor, lengths_B: Tensor, key_start: int
) -> TokenBatch:
    """A target of weight 1 at every position: the item of the next one.

    The last position of a sequence asks for its first item again, so that every
    position has a target.
    """
    num_positions = columns_FT.shape[1]
    starts = (lengths_B + 1).cumsum(0) - lengths_B - 1
    next_T = torch.arange(1, num_positions + 1)
    next_T[starts + lengths_B] = starts + 1
    return TokenBatch(
        features=to_features(columns_FT, lengths_B),
        position_key_T=torch.arange(num_positions) + key_start,
        target_context_S=torch.arange(num_positions),
        target_item_S=columns_FT[0, next_T] - 1,
        target_weight_S=torch.ones(num_positions),
        loss_scale=torch.tensor(1.0 / num_positions),
    )


def zipf_lengths(num_sequences: int, longest: int, noise: torch.Generator) -> Tensor:
    """int64 [B]: lengths in [1, longest], P(n) proportional to 1 / n."""
    share = 1.0 / torch.arange(1, longest + 1)
    return 1 + torch.multinomial(share, num_sequences, True, generator=noise)
