"""The pretraining step: jagged against padded, small against large catalogues, memory.

    python benchmarks/bench_train_step.py [--json PATH] [--threads 2]

1. Tokens per second, forward and backward, on 64 sequences whose lengths follow Zipf's
   law (P(n) proportional to 1 / n, n <= 200), against the same network, weights and
   loss over padded tensors. Both losses and the gradients of every parameter are
   compared first, without dropout; with it, noise differs by design.
2. A whole step (forward, backward with the fused table update, AdamW) of the sharded
   model on one gloo rank, 10^4 against 10^7 items drawn uniformly, the worst case for
   caches.
3. Peak resident memory of two ranks that train 10^7 items together.

Network: dim 64, 2 layers, 2 heads, decoder width 256 (the default run's). Fresh batches
in every repetition; the two sides take turns and use the same threads.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing
from peers.padded_decoder import PaddedBatch, padded_loss
from peers.workload import (
    NUM_EVENT_TYPES,
    next_item_batch,
    random_columns,
    random_generator,
    scattered_trie,
    zipf_lengths,
)
from reporting import Row, relative_spread, report, time_interleaved

from sgrec_torchrec.config import GeneratorConfig
from sgrec_torchrec.distributed.optimizer import build_optimizer
from sgrec_torchrec.distributed.sharding import shard
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.token_batch import TokenBatch

CONFIG = GeneratorConfig(dim=64, num_layers=2, num_heads=2, decoder_width=256)
BATCH_SIZE, LONGEST = 64, 200
SMALL, LARGE = 10_000, 10_000_000
MEMORY_LIMIT_GIB = 16


class Batches:
    """An endless row of fresh batches; ``made`` counts the positions handed out."""

    def __init__(self, trie: PrefixTrie, seed: int) -> None:
        self.trie = trie
        self.noise = torch.Generator().manual_seed(seed)
        self.made = 0

    def take(self) -> TokenBatch:
        """The next batch."""
        lengths = zipf_lengths(BATCH_SIZE, LONGEST, self.noise)
        columns = random_columns(self.trie, lengths, CONFIG, self.noise)
        batch = next_item_batch(columns, lengths, self.made)
        self.made += columns.shape[1]
        return batch


def check_equal(model: Generator, batch: TokenBatch) -> None:
    """Raise RuntimeError where padded and jagged disagree on loss or gradients."""
    model.eval()
    sides = []
    for loss in (model(batch)[0], padded_loss(model, PaddedBatch(batch), 0.0)):
        names, parameters = zip(*model.named_parameters(), strict=True)
        sides.append((loss.detach(), torch.autograd.grad(loss, parameters)))
    (ours, ours_gradient), (peer, peer_gradient) = sides
    torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-6)
    worst = 0.0
    for name, one, other in zip(names, ours_gradient, peer_gradient, strict=True):
        error = float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        if error > 1e-3:
            raise RuntimeError(f"{name}: gradients differ by {error:.1e} of their max")
        worst = max(worst, error)
    print(
        f"equal: loss {float(ours):.6f} and {float(peer):.6f}, gradients within "
        f"{worst:.1e} of each parameter's largest"
    )


def padding_row(dropout: float) -> Row:
    """Tokens per second of forward and backward, jagged and padded."""
    trie = scattered_trie(SMALL, 256)
    config = dataclasses.replace(CONFIG, dropout=dropout)
    model = random_generator(trie, config, seed=0)
    batches = Batches(trie, seed=1)
    check_equal(model, batches.take())
    model.train()
    # Both sides get the same fresh batches; making and padding them is not timed.
    queue = [batches.take() for _ in range(8)]
    padded = [PaddedBatch(batch) for batch in queue]
    num_tokens = sum(len(batch.position_key_T) for batch in queue) / len(queue)
    share = num_tokens / (sum(one.is_real_BP.numel() for one in padded) / len(queue))

    def ours() -> None:
        model.zero_grad(set_to_none=True)
        model(queue[turn["ours"] % 8])[0].backward()
        turn["ours"] += 1

    def peer() -> None:
        model.zero_grad(set_to_none=True)
        padded_loss(model, padded[turn["peer"] % 8], dropout).backward()
        turn["peer"] += 1

    turn = {"ours": 0, "peer": 0}
    ours_s, peer_s = time_interleaved(ours, peer, 7)
    tokens = [len(batch.position_key_T) for batch in (*queue[1:],)]
    ours_rate = [count / one for count, one in zip(tokens, ours_s, strict=True)]
    peer_rate = [count / one for count, one in zip(tokens, peer_s, strict=True)]
    ratios = [one / other for one, other in zip(ours_rate, peer_rate, strict=True)]
    return Row(
        name=f"forward + backward, Zipf lengths <= {LONGEST}, dropout {dropout}",
        unit="tokens/s",
        ours=median(ours_rate),
        peer=median(peer_rate),
        peer_name=f"the same network padded ({share:.0%} of its places are real)",
        ratio=median(ours_rate) / median(peer_rate),
        spread=relative_spread(ratios),
    )


def sharded_step(
    num_items: int, num_codes: int, table_device: torch.device | None, ranks: int
) -> Callable[[], float]:
    """A whole training step on fresh batches, as a function that returns its loss."""
    trie = scattered_trie(num_items, num_codes)
    torch.manual_seed(0)
    model = Generator(
        config=CONFIG,
        trie=trie,
        num_event_types=NUM_EVENT_TYPES,
        table_device=table_device,
    )
    dmp = shard(
        model,
        device=torch.device("cpu"),
        batch_size_per_rank=BATCH_SIZE,
        table_lr=0.05,
        seed=0,
        local_world_size=ranks,
    )
    optimizer = build_optimizer(dmp, dense_lr=1e-3, weight_decay=0.01)
    batches = Batches(trie, seed=dist.get_rank())
    dmp.train()

    def step() -> float:
        batch = batches.take()
        optimizer.zero_grad()
        loss, _ = dmp(batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def growth_rows() -> Iterator[Row]:
    """Step time at 10^7 items beside 10^4, on one rank."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        for small_codes, large_codes in ((512, 512), (256, 1024)):
            small = sharded_step(SMALL, small_codes, None, 1)
            large = sharded_step(LARGE, large_codes, torch.device("meta"), 1)
            large_s, small_s = time_interleaved(large, small, 21)
            del small, large
            yield Row(
                name=f"sharded step, {LARGE:.0e} items, K={large_codes}",
                unit="s",
                ours=median(large_s),
                peer=median(small_s),
                peer_name=f"ours at {SMALL:.0e} items, K={small_codes}",
                ratio=median(small_s) / median(large_s),
                spread=relative_spread(large_s),
            )
        dist.destroy_process_group()


def rank_of_two(rank: int, folder: str) -> None:
    """One of two processes: three steps at 10^7 items, then its peak memory."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    step = sharded_step(LARGE, 1024, torch.device("meta"), 2)
    losses = [step() for _ in range(3)]
    dist.destroy_process_group()
    Path(folder, f"{rank}").write_text(f"{peak_memory_bytes()} {losses}")


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far.

    getrusage would count the process that started it as well.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM line")


def memory_row() -> Row:
    """Peak resident memory of two ranks together."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_of_two, (folder,), nprocs=2)
        told = [Path(folder, f"{rank}").read_text().split(" ", 1) for rank in (0, 1)]
    print("losses of the two ranks:", *(losses for _, losses in told))
    total_gib = sum(int(peak) for peak, _ in told) / 2**30
    return Row(
        name=f"peak memory of 2 ranks, {LARGE:.0e} items, dim {CONFIG.dim}",
        unit="GiB",
        ours=total_gib,
        peer=MEMORY_LIMIT_GIB,
        peer_name="the limit",
        ratio=MEMORY_LIMIT_GIB / total_gib,
        spread=0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("padding", "growth", "memory"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Row] = []
    if args.only in (None, "padding"):
        rows += [padding_row(0.0), padding_row(0.2)]
    if args.only in (None, "memory"):
        rows.append(memory_row())
    if args.only in (None, "growth"):
        rows += growth_rows()
    report(rows, args.json)


if __name__ == "__main__":
    main()
