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
from collections.abc import Iterator
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
from peers.workload import (
    NUM_LEVELS,
    random_columns,
    random_generator,
    scattered_trie,
    to_features,
)
from reporting import Row, relative_spread, report, time_interleaved, timed_row
from torch import Tensor
from trie_rows import (
    NUM_CODES,
    NUM_ITEMS,
    NUM_USERS,
    WIDTH,
    growth_rows,
    trie_rows,
)

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.schema import Rollout

HISTORY = 150
CONFIG = GeneratorConfig(
    dim=256, num_layers=4, num_heads=4, decoder_width=256, dropout=0.0
)
SCORE_TOLERANCE = 1e-4


class Histories:
    """An endless row of fresh random histories."""

    def __init__(self, trie: PrefixTrie, seed: int) -> None:
        self.trie = trie
        self.noise = torch.Generator().manual_seed(seed)
        self.lengths = torch.full((NUM_USERS,), HISTORY)

    def columns(self) -> Tensor:
        """int64 [F, B * (HISTORY + 1)]."""
        return random_columns(self.trie, self.lengths, CONFIG, self.noise)


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
