"""What a training run trains: the sharded generator, its optimizer and its data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import Ranks
from sgrec_torchrec.distributed.optimizer import build_optimizer
from sgrec_torchrec.distributed.sharding import shard
from sgrec_torchrec.files.run_folder import BEST, CHECKPOINTS
from sgrec_torchrec.files.tracking import Tracker
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.sampling import SoftTargets
from sgrec_torchrec.logs.stream import TrainStream
from sgrec_torchrec.schema import ItemTokens, SplitLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """What a run trains and where it writes."""

    dmp: DistributedModelParallel
    optimizer: CombinedOptimizer
    stream: TrainStream
    config: RunConfig
    tracker: Tracker
    device: torch.device

    @property
    def checkpoints(self) -> Path:
        """The newest states, to go on from."""
        return self.config.run_dir / CHECKPOINTS

    @property
    def best(self) -> Path:
        """The state that ships."""
        return self.config.run_dir / BEST


def build_trainee(
    split: SplitLog,
    soft_targets: SoftTargets,
    tokens: ItemTokens,
    config: RunConfig,
    ranks: Ranks,
    tracker: Tracker,
) -> Trainee:
    """The generator, sharded over the ranks, with its optimizer and its data.

    All ranks call together. Start weights and batches follow from ``config.seed``
    alone, not from the number of ranks.
    """
    trie = PrefixTrie.build(tokens.codes_NL, tokens.num_codes).to(ranks.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = Generator(
            config=config.generator,
            trie=trie,
            num_event_types=split.sequences.num_event_types,
            # A table may be larger than one host: nothing is allocated before sharding.
            table_device=torch.device("meta"),
        )
    stream = TrainStream(
        split,
        tokens.codes_NL,
        tokens.num_codes,
        config,
        soft_targets,
        ranks.rank,
        ranks.world_size,
    )
    dmp = shard(
        generator,
        device=ranks.device,
        batch_size_per_rank=-(-stream.batch_size // ranks.world_size),
        table_lr=config.pretrain.table_lr,
        seed=config.seed,
    )
    optimizer = build_optimizer(
        dmp,
        dense_lr=config.pretrain.dense_lr,
        weight_decay=config.pretrain.weight_decay,
        max_gradient_norm=config.pretrain.max_gradient_norm,
    )
    return Trainee(
        dmp=dmp,
        optimizer=optimizer,
        stream=stream,
        config=config,
        tracker=tracker,
        device=ranks.device,
    )
