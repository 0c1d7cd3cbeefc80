"""The trie's part of ``bench_decode``: against a Python processor, and its growth."""

import itertools
from collections.abc import Callable, Iterator
from statistics import median

import torch
from peers.prefix_processor import PrefixDictProcessor, text_keyed
from peers.workload import NUM_LEVELS, scattered_trie
from reporting import Row, relative_spread, time_interleaved, timed_row
from torch import Tensor

from sgrec_torchrec.generator.beam import beam_search
from sgrec_torchrec.generator.decoder import CodeDecoder
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie

NUM_USERS, WIDTH = 8, 50
NUM_ITEMS, NUM_CODES = 100_000, 256
DIM = 256
TRIE_CALLS, PROCESSOR_CALLS = 3000, 30
"""Steps timed as one, so that both sides run for some tenths of a second: other load
on the machine then slows both alike."""
Beams = Iterator[tuple[Tensor, Tensor, Tensor]]


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
        dim=DIM,
        width=DIM,
        num_levels=NUM_LEVELS,
        num_codes=trie.num_codes,
    )
    hidden = itertools.cycle(torch.randn(30, NUM_USERS, DIM))
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
