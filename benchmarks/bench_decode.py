"""Constrained beam search and the trie step, against what users run today.

    python benchmarks/bench_decode.py [--json PATH] [--threads 2]

Network: dim 256, 4 layers, 4 heads, decoder width 256, random weights; 100,000 items,
K = 256, L = 3; B = 8 users, histories of 150 events, W = 50. Fresh histories in every
repetition; the two sides take turns and use the same number of threads. Before the
clock starts, the peers' ranked items and scores are compared with ours.

Peers:
1. transformers.generate + prefix_allowed_tokens_fn over the same network and weights.
   generate repeats the prompt W times before its first forward, as for any
   decoder-only model; after that the adapter's cache holds each row's hidden vector,
   so no step encodes a history again. ``renormalize_logits`` makes its scores
   log-probabilities over the legal codes, like ours.
2. The same, helped by hand: the histories are encoded once per user outside generate.
3. A decoder of equal width, depth and heads over a flat vocabulary of 3 * 256 codes
   (450 prompt tokens), as MiniOneRec's users run today: another network, so its items
   differ.
4. A Python logits processor over a dict of prefixes, against ``PrefixTrie.log_mask``.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import transformers
from peers.generate_adapter import (
    GenerateAdapter,
    flat_token_model,
    generate_ranked,
    prefix_dict,
)
from peers.prefix_processor import PrefixDictProcessor
from peers.workload import (
    NUM_LEVELS,
    random_columns,
    random_generator,
    scattered_trie,
    to_features,
)
from reporting import Row, relative_spread, report, time_interleaved
from torch import Tensor

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import Rollout

NUM_USERS, HISTORY, WIDTH = 8, 150, 50
NUM_ITEMS, NUM_CODES = 100_000, 256
CONFIG = GeneratorConfig(
    dim=256, num_layers=4, num_heads=4, decoder_width=256, dropout=0.0
)
SCORE_TOLERANCE = 1e-4
TRIE_CALLS, PROCESSOR_CALLS = 4000, 40
"""Steps timed as one, so that both sides run for some tenths of a second: other load
on the machine then slows both alike."""


class Histories:
    """An endless row of fresh random histories."""

    def __init__(self, trie: PrefixTrie, seed: int) -> None:
        self.trie = trie
        self.noise = torch.Generator().manual_seed(seed)
        self.lengths = torch.full((NUM_USERS,), HISTORY)

    def columns(self) -> Tensor:
        """int64 [F, B * (HISTORY + 1)]."""
        return random_columns(self.trie, self.lengths, CONFIG, self.noise)


def timed_row(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    calls: tuple[int, int] = (1, 1),
) -> Row:
    """Median seconds of one call; ``calls`` are the calls inside ours and peer."""
    ours_s, peer_s = time_interleaved(ours, peer)
    ratios = [
        peer_one / ours_one for ours_one, peer_one in zip(ours_s, peer_s, strict=True)
    ]
    return Row(
        name=name,
        unit="s",
        ours=median(ours_s),
        peer=median(peer_s),
        peer_name=peer_name,
        ratio=median(peer_s) / median(ours_s),
        spread=relative_spread(ratios),
    )


@torch.no_grad()
def search(generator: Generator, columns: Tensor) -> Rollout:
    lengths = torch.full((NUM_USERS,), HISTORY)
    hidden = generator.encode_last(to_features(columns, lengths))
    tower = generator.tower
    return beam_search(tower.decoder, tower.trie, hidden, WIDTH)


def by_user(columns: Tensor) -> Tensor:
    """[F, B * T] -> [B, F, T]."""
    return columns.unflatten(1, (NUM_USERS, -1)).transpose(0, 1).contiguous()


class Peers:
    """transformers.generate over the network of ``generator``, two ways."""

    def __init__(self, generator: Generator) -> None:
        self.model = GenerateAdapter(generator).eval()
        trie = generator.tower.trie
        self.next_tokens = prefix_dict(map(tuple, trie.codes_NL.tolist()))

    def repeated(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """generate repeats each history W times, then encodes."""
        columns_BFT = by_user(columns)
        return generate_ranked(
            self.model,
            columns_BFT[:, 0],
            self.next_tokens,
            WIDTH,
            feature_columns=columns_BFT,
        )

    @torch.no_grad()
    def encoded_once(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The histories are encoded before generate, which repeats the vectors."""
        lengths = torch.full((NUM_USERS,), HISTORY)
        hidden = self.model.generator.encode_last(to_features(columns, lengths))
        prompt = torch.zeros(NUM_USERS, 1, dtype=torch.int64)
        return generate_ranked(
            self.model, prompt, self.next_tokens, WIDTH, hidden=hidden
        )


def check_equal(ours: Rollout, peer: tuple[Tensor, Tensor], name: str) -> None:
    """Same items in the same order, but for neighbours whose scores tie.

    Raises:
        RuntimeError: where they differ by more than rounding.
    """
    codes, scores = peer
    worst = float((scores - ours.logprob_BG).abs().max())
    is_same = (codes == ours.codes_BGL).all(-1)
    step = ours.logprob_BG.diff(dim=1).abs()
    is_tie = torch.zeros_like(is_same)
    is_tie[:, 1:] |= step < SCORE_TOLERANCE
    is_tie[:, :-1] |= step < SCORE_TOLERANCE
    if worst > SCORE_TOLERANCE or not (is_same | is_tie).all():
        raise RuntimeError(f"{name}: ranked items differ from ours ({worst=})")
    print(
        f"equal to {name}: {int(is_same.sum())} of {is_same.numel()} ranked items "
        f"identical (the rest tie), largest score difference {worst:.1e}"
    )


def beam_rows(generator: Generator) -> Iterator[Row]:
    histories, peers = Histories(generator.tower.trie, seed=1), Peers(generator)
    version = f"transformers {transformers.__version__} generate"
    for name, peer in (("", peers.repeated), (", encoded once", peers.encoded_once)):
        columns = histories.columns()
        check_equal(search(generator, columns), peer(columns), version + name)
        yield timed_row(
            f"beam W={WIDTH} B={NUM_USERS} history {HISTORY}, 100k items",
            lambda: search(generator, histories.columns()),
            lambda peer=peer: peer(histories.columns()),
            version + name,
        )
    yield flat_row(generator, histories)
    yield bound_row(generator, histories)
    yield cached_row(generator, histories, peers, version)


def flat_row(generator: Generator, histories: Histories) -> Row:
    trie = generator.tower.trie
    torch.manual_seed(2)
    model = flat_token_model(
        CONFIG.dim, CONFIG.num_layers, CONFIG.num_heads, trie.num_codes
    )
    shift = torch.arange(NUM_LEVELS) * trie.num_codes
    next_tokens = prefix_dict(map(tuple, (trie.codes_NL + shift).tolist()))

    def peer() -> object:
        items = by_user(histories.columns())[:, 0, 1:] - 1
        prompt = (trie.codes_NL[items] + shift).flatten(1)
        return generate_ranked(model, prompt, next_tokens, WIDTH)

    return timed_row(
        f"beam W={WIDTH} B={NUM_USERS} history {HISTORY}, 100k items",
        lambda: search(generator, histories.columns()),
        peer,
        "flat-token Llama, 3 tokens an item, generate",
    )


def bound_row(generator: Generator, histories: Histories) -> Row:
    """Ours beside its matrix products alone, at the speed measured for those shapes."""
    num_positions = NUM_USERS * (HISTORY + 1)
    dim, layers = CONFIG.dim, CONFIG.num_layers
    state = torch.randn(num_positions, dim)
    heads = torch.randn(NUM_USERS, CONFIG.num_heads, HISTORY + 1, dim // 4)
    gated = torch.randn(num_positions, 2 * dim)
    weights = [torch.randn(width, dim) for width in (3 * dim, dim, 4 * dim)]
    last = torch.randn(dim, 2 * dim)

    @torch.no_grad()
    def products() -> None:
        for _ in range(layers):
            for weight in weights:
                state @ weight.T
            gated @ last.T
            heads @ heads.transpose(2, 3) @ heads

    ours_s, bound_s = time_interleaved(
        lambda: search(generator, histories.columns()), products, 15
    )
    flops = layers * num_positions * (20 * dim * dim + 4 * dim * (HISTORY + 1))
    speed = flops / median(bound_s) / 1e9
    return Row(
        name="beam, beside its bound (below 1: what is left)",
        unit="s",
        ours=median(ours_s),
        peer=median(bound_s),
        peer_name=f"the backbone's {flops / 1e9:.2f} GFLOP at {speed:.0f} GFLOP/s",
        ratio=median(bound_s) / median(ours_s),
        spread=relative_spread(ours_s),
    )


def cached_row(
    generator: Generator, histories: Histories, peers: Peers, version: str
) -> Row:
    """The user's hidden vector is already known, as where a server keeps it."""
    tower = generator.tower
    with torch.no_grad():
        known = [
            generator.encode_last(to_features(histories.columns(), histories.lengths))
            for _ in range(8)
        ]
    hidden = itertools.cycle(known)
    prompt = torch.zeros(NUM_USERS, 1, dtype=torch.int64)
    return timed_row(
        "beam alone, histories already encoded",
        lambda: beam_search(tower.decoder, tower.trie, next(hidden), WIDTH),
        lambda: generate_ranked(
            peers.model, prompt, peers.next_tokens, WIDTH, hidden=next(hidden)
        ),
        f"{version}, histories already encoded",
    )


def live_prefixes(trie: PrefixTrie, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes and nodes of the last level's prefixes of random items: 400 beams."""
    item_X = torch.randint(trie.num_items, (NUM_USERS * WIDTH,), generator=noise)
    codes_XL = trie.codes_NL[item_X].long()
    return codes_XL[:, :-1], trie.prefix_nodes(codes_XL)[:, -1]


def trie_rows() -> Iterator[Row]:
    trie = scattered_trie(NUM_ITEMS, NUM_CODES)
    noise = torch.Generator().manual_seed(3)
    processor = PrefixDictProcessor(prefix_dict(map(tuple, trie.codes_NL.tolist())))
    scores = torch.randn(NUM_USERS * WIDTH, NUM_CODES)
    prefixes = itertools.cycle([live_prefixes(trie, noise) for _ in range(640)])
    codes, nodes = next(prefixes)
    if not torch.equal(
        processor(codes, scores), scores + trie.log_mask(NUM_LEVELS - 1, nodes)
    ):
        raise RuntimeError("trie step: the processor's mask differs from ours")

    def ours() -> None:
        for _ in range(TRIE_CALLS):
            scores + trie.log_mask(NUM_LEVELS - 1, next(prefixes)[1])

    def peer() -> None:
        for _ in range(PROCESSOR_CALLS):
            processor(next(prefixes)[0], scores)

    yield timed_row(
        "trie step, 400 beams, 100k items, K=256",
        ours,
        peer,
        "Python logits processor over a dict of prefixes",
        (TRIE_CALLS, PROCESSOR_CALLS),
    )
    small, large = 10_000, 10_000_000
    for small_codes, large_codes in ((512, 512), (256, 1024)):
        yield growth_row(small, small_codes, large, large_codes)


def growth_row(small: int, small_codes: int, large: int, large_codes: int) -> Row:
    def steps(num_items: int, num_codes: int) -> Callable[[], None]:
        trie = scattered_trie(num_items, num_codes)
        noise = torch.Generator().manual_seed(4)
        scores = torch.randn(NUM_USERS * WIDTH, num_codes)
        nodes = itertools.cycle([live_prefixes(trie, noise)[1] for _ in range(640)])

        def run() -> None:
            for _ in range(TRIE_CALLS):
                scores + trie.log_mask(NUM_LEVELS - 1, next(nodes))

        return run

    small_s, large_s = time_interleaved(
        steps(small, small_codes), steps(large, large_codes), 15
    )
    return Row(
        name=f"trie step, {large:.0e} items K={large_codes}",
        unit="s",
        ours=median(large_s) / TRIE_CALLS,
        peer=median(small_s) / TRIE_CALLS,
        peer_name=f"ours at {small:.0e} items K={small_codes}",
        ratio=median(small_s) / median(large_s),
        spread=relative_spread(large_s),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("trie", "beam"), help="one half")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    if args.only != "beam":
        rows += trie_rows()
    if args.only != "trie":
        trie = scattered_trie(NUM_ITEMS, NUM_CODES)
        rows += beam_rows(random_generator(trie, CONFIG, seed=0).eval())
    report(rows, args.json)


if __name__ == "__main__":
    main()
