"""Train and evaluate the generator: the whole pipeline, a step a line.

    python sgrec_torchrec/train.py
    torchrun --nproc-per-node 2 sgrec_torchrec/train.py --run movielens
    torchx run dist.ddp -j 2x8 sgrec_torchrec/train.py

Log -> item graph -> item tokens -> sharded generator -> pretraining -> evaluation ->
report. Stages whose settings and inputs are unchanged are reused.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from sgrec_torchrec.config import RunConfig, parse_run
from sgrec_torchrec.distributed.atomic import write_json
from sgrec_torchrec.distributed.launch import (
    Ranks,
    is_main_rank,
    main_rank_first,
    process_group,
)
from sgrec_torchrec.distributed.optimizer import build_optimizer
from sgrec_torchrec.distributed.origin import describe_run
from sgrec_torchrec.distributed.sharding import shard
from sgrec_torchrec.distributed.tracking import Tracker
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evaluation.offline import evaluate, validation_ndcg
from sgrec_torchrec.evaluation.report import write_report
from sgrec_torchrec.generator.model import Generator
from sgrec_torchrec.generator.pretrain import Trainee, pretrain, restore_best
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.stream import TrainStream
from sgrec_torchrec.prepare import prepare_graph, prepare_log, prepare_tokens
from sgrec_torchrec.schema import ItemTokens, SplitLog

Made = TypeVar("Made")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, run the pipeline on all ranks."""
    config, args = parse_run(argv)
    with process_group() as ranks:
        run(config, ranks, resume=args.resume)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run chose on the valid rows: a refit takes it over."""

    best_epoch: int
    prior_weight: float


def run(
    config: RunConfig,
    ranks: Ranks,
    *,
    resume: bool = False,
    evaluate_only: bool = False,
) -> RunResult:
    """The seven steps. All ranks call together; the main rank writes."""
    watch = Stopwatch()
    split, config = watch("log", lambda: prepare_log(config))
    graph, config = watch("graph", lambda: prepare_graph(split, config))
    tokens = watch("tokens", lambda: prepare_tokens(split, graph, config))
    write_config(config)
    with Tracker(config.run_dir, enabled=is_main_rank()) as tracker:
        trainee = build_trainee(split, graph, tokens, config, ranks, tracker)
        ranker = Ranker(
            dmp=trainee.dmp,
            split=split,
            tokens=tokens,
            graph=graph,
            config=config,
            ranks=ranks,
        )
        validate = validation_ndcg(ranker)
        state = watch.together(
            "pretrain",
            lambda: (
                restore_best(trainee)
                if evaluate_only
                else pretrain(trainee, validate, resume=resume)
            ),
        )
        prior_weight = watch.together(
            "evaluate", lambda: evaluate(ranker, watch.seconds)
        )
    if is_main_rank():
        print(f"report: {write_report(config.run_dir)}")
    best_epoch = -(-state.best_step // trainee.stream.steps_per_epoch)
    return RunResult(best_epoch=best_epoch, prior_weight=prior_weight)


class Stopwatch:
    """Runs a stage and notes its wall time in seconds: ``watch.seconds[stage]``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, prepare: Callable[[], Made]) -> Made:
        """A preparation: the main rank makes it, then the others load it."""
        return self.together(stage, lambda: main_rank_first(prepare))

    def together(self, stage: str, run_stage: Callable[[], Made]) -> Made:
        """A stage in which all ranks work together."""
        began_s = time.perf_counter()
        made = run_stage()
        self.seconds[stage] = round(time.perf_counter() - began_s, 1)
        return made


def write_config(config: RunConfig) -> None:
    """The resolved settings, commit and versions, into the run's folder."""
    if is_main_rank():
        write_json(config.run_dir / "config.json", dataclasses.asdict(config))
        write_json(config.run_dir / "meta.json", describe_run())


def build_trainee(
    split: SplitLog,
    graph: ItemGraph,
    tokens: ItemTokens,
    config: RunConfig,
    ranks: Ranks,
    tracker: Tracker,
) -> Trainee:
    """The generator, sharded over the ranks, with its optimizer and its data."""
    trie = PrefixTrie.build(tokens.codes_NL, tokens.num_codes).to(ranks.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator = Generator(
            config=config.generator,
            trie=trie,
            num_event_types=split.sequences.num_event_types,
            table_device=torch.device("meta"),
        )
    dmp = shard(
        generator,
        device=ranks.device,
        batch_size_per_rank=-(-config.pretrain.global_batch_size // ranks.world_size),
        table_lr=config.pretrain.table_lr,
        seed=config.seed,
    )
    optimizer = build_optimizer(
        dmp,
        dense_lr=config.pretrain.dense_lr,
        weight_decay=config.pretrain.weight_decay,
        max_gradient_norm=config.pretrain.max_gradient_norm,
    )
    stream = TrainStream(
        split,
        tokens.codes_NL,
        tokens.num_codes,
        config,
        (graph.indptr_N1, graph.neighbours_E, graph.weights_E, graph.decay),
        ranks.rank,
        ranks.world_size,
    )
    return Trainee(
        dmp=dmp,
        optimizer=optimizer,
        stream=stream,
        config=config,
        tracker=tracker,
        device=ranks.device,
    )


if __name__ == "__main__":
    main()
