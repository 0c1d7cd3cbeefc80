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
4. A Python logits processor over a dict of prefixes, against ``PrefixTrie.log_mask``
   added to the scores; its vocabulary is K codes, which favours it.
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
from peers.prefix_processor import PrefixDictProcessor, text_keyed
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
from sgrec_torchrec.generator.decoder import CodeDecoder
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import Rollout

NUM_USERS, HISTORY, WIDTH = 8, 150, 50
NUM_ITEMS, NUM_CODES = 100_000, 256
CONFIG = GeneratorConfig(
    dim=256, num_layers=4, num_heads=4, decoder_width=256, dropout=0.0
)
Beams = Iterator[tuple[Tensor, Tensor, Tensor]]
SCORE_TOLERANCE = 1e-4
TRIE_CALLS, PROCESSOR_CALLS = 3000, 30
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
    totals = time_interleaved(ours, peer)
    ours_s, peer_s = (
        [total / count for total in side]
        for side, count in zip(totals, calls, strict=True)
    )
    ratios = [one / other for one, other in zip(peer_s, ours_s, strict=True)]
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


def live_prefixes(
    trie: PrefixTrie, level: int, noise: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefixes [X, level] of random items, their nodes and the items' next codes."""
    item_X = torch.randint(trie.num_items, (NUM_USERS * WIDTH,), generator=noise)
    codes_XL = trie.codes_NL[item_X].long()
    node_X = trie.prefix_nodes(codes_XL)[:, level]
    return codes_XL[:, :level], node_X.clone(), codes_XL[:, level].clone()


def trie_rows() -> Iterator[Row]:
    """The trie step of 400 beams at each level that has so many."""
    trie = scattered_trie(NUM_ITEMS, NUM_CODES)
    processor = PrefixDictProcessor(text_keyed(trie.codes_NL.tolist()))
    scores = torch.randn(NUM_USERS * WIDTH, NUM_CODES)
    for level in range(1, NUM_LEVELS):
        noise = torch.Generator().manual_seed(level)
        beams = itertools.cycle([live_prefixes(trie, level, noise) for _ in range(300)])
        codes, nodes, _ = next(beams)
        ours_masked = scores + trie.log_mask(level, nodes)
        if not torch.equal(processor(codes, scores), ours_masked):
            raise RuntimeError("trie step: the processor's mask differs from ours")

        def ours(level: int = level, beams: Beams = beams) -> None:
            for _ in range(TRIE_CALLS):
                trie.log_mask(level, next(beams)[1]).add_(scores)

        def peer(beams: Beams = beams) -> None:
            for _ in range(PROCESSOR_CALLS):
                processor(next(beams)[0], scores)

        yield timed_row(
            f"trie step, 400 beams, code {level + 1} of 3, 100k items, K=256",
            ours,
            peer,
            "Python logits processor over a dict of prefixes",
            (TRIE_CALLS, PROCESSOR_CALLS),
        )


def growth_rows() -> Iterator[Row]:
    """Ours at 10^7 items beside ours at 10^4."""
    every, last = range(NUM_LEVELS), range(NUM_LEVELS - 1, NUM_LEVELS)
    for levels, what in (
        (every, "of a search, all 3 codes"),
        (last, "of code 3 alone"),
    ):
        yield growth_row(
            f"trie work {what} (mask scores, walk to children)",
            lambda trie, levels=levels: trie_work(trie, levels),
            (512, 512),
            TRIE_CALLS // 2,
        )
    yield growth_row(
        "trie work of a search, all 3 codes, K by the default",
        lambda trie: trie_work(trie, every),
        (256, 1024),
        TRIE_CALLS // 2,
    )
    yield growth_row("beam search, histories encoded", beam_work, (512, 512), 20)


def trie_work(trie: PrefixTrie, levels: range) -> Callable[[], object]:
    """What the trie does in a beam search: one beam a user at first, then W."""
    noise = torch.Generator().manual_seed(4)
    scores = torch.randn(NUM_USERS * WIDTH, trie.num_codes)
    beams = {
        level: itertools.cycle([live_prefixes(trie, level, noise) for _ in range(300)])
        for level in levels
    }

    def run() -> None:
        for level in levels:
            _, nodes, codes = next(beams[level])
            parents = nodes[:NUM_USERS] if level == 0 else nodes
            trie.log_mask(level, parents).add_(scores[: len(parents)])
            trie.child(level, nodes, codes)

    return run


def beam_work(trie: PrefixTrie) -> Callable[[], object]:
    """A whole search with the decoder, without the backbone."""
    torch.manual_seed(0)
    decoder = CodeDecoder(
        dim=CONFIG.dim,
        width=CONFIG.decoder_width,
        num_levels=NUM_LEVELS,
        num_codes=trie.num_codes,
    )
    hidden = itertools.cycle(torch.randn(30, NUM_USERS, CONFIG.dim))
    return lambda: beam_search(decoder, trie, next(hidden), WIDTH)


def growth_row(
    name: str,
    work: Callable[[PrefixTrie], Callable[[], object]],
    num_codes: tuple[int, int],
    calls: int,
) -> Row:
    """Seconds of one call at 10^7 items (ours) and 10^4 (peer)."""
    small, large = 10_000, 10_000_000
    runs = [
        work(scattered_trie(items, codes))
        for items, codes in zip((large, small), num_codes[::-1], strict=True)
    ]

    def repeat(run: Callable[[], object]) -> None:
        for _ in range(calls):
            run()

    large_s, small_s = time_interleaved(
        lambda: repeat(runs[0]), lambda: repeat(runs[1]), 9
    )
    return Row(
        name=f"{name}, {large:.0e} items K={num_codes[1]}",
        unit="s",
        ours=median(large_s) / calls,
        peer=median(small_s) / calls,
        peer_name=f"ours at {small:.0e} items K={num_codes[0]}",
        ratio=median(small_s) / median(large_s),
        spread=relative_spread(large_s),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("trie", "growth", "beam"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    if args.only in (None, "trie"):
        rows += trie_rows()
    if args.only in (None, "growth"):
        rows += growth_rows()
    if args.only in (None, "beam"):
        trie = scattered_trie(NUM_ITEMS, NUM_CODES)
        rows += beam_rows(random_generator(trie, CONFIG, seed=0).eval())
    report(rows, args.json)


if __name__ == "__main__":
    main()
