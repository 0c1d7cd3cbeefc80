"""A run's settings -> what it is made from, its model, and its trained weights.

The one door for whoever trains, ranks or draws: ``prepare_run`` makes or reuses the
stages, ``build_run`` shards the model over the ranks as it starts, ``open_run`` does
both for a trained run and reads its weights. All ranks call together. Only serving has
a door of its own (``serving.run_files``): one process reads the weights whole, needs no
training stack, and never makes a stage again.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint
from sgrec_torchrec.distributed.executor import HERE, Executor
from sgrec_torchrec.distributed.launch import Ranks, main_rank_first
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.evidence.prior import EvidencePrior
from sgrec_torchrec.files.atomic import write_json
from sgrec_torchrec.files.origin import describe_run
from sgrec_torchrec.files.run_folder import BEST, CONFIG, META
from sgrec_torchrec.files.tracking import Tracker
from sgrec_torchrec.generator.pretrain import restore_best
from sgrec_torchrec.generator.trainee import Trainee, build_trainee
from sgrec_torchrec.item_graph.graph import ItemGraph
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS, SoftTargets
from sgrec_torchrec.runs.claim import Claim
from sgrec_torchrec.runs.prepare import (
    prepare_evidence,
    prepare_graph,
    prepare_log,
    prepare_teacher,
    prepare_tokens,
)
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.runs.stopwatch import Stopwatch
from sgrec_torchrec.schema import ItemTokens, SplitLog


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a run is made from, and its settings with none of them open."""

    split: SplitLog
    graph: ItemGraph
    evidence: EvidencePrior | None
    """None where it was not asked for."""
    teacher: SoftTargets
    tokens: ItemTokens
    config: RunConfig
    links: StageLinks
    """Of the run's folder to all this; moved once its settings are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run's model, sharded over the ranks, and what it is made from."""

    trainee: Trainee
    made: Prepared
    ranks: Ranks
    step: int
    """Of pretraining, that made these weights; 0 as they start."""

    def ranker(self) -> Ranker:
        """The same model as one that ranks rows."""
        evidence = self.made.evidence
        assert evidence is not None, "prepared without evidence"
        return Ranker(
            dmp=self.trainee.dmp,
            split=self.made.split,
            tokens=self.made.tokens,
            graph=self.made.graph,
            evidence=evidence,
            config=self.made.config,
            ranks=self.ranks,
        )


def prepare_run(
    config: RunConfig,
    watch: Stopwatch,
    *,
    claim: Claim,
    check: Callable[[SplitLog, RunConfig], None] | None = None,
    with_evidence: bool = True,
    with_teacher: bool = False,
    executor: Executor = HERE,
) -> Prepared:
    """Make or reuse the stages in order, the main rank first.

    Args:
        watch: notes how long each takes.
        claim: what the run's folder is wanted for; refuses before it changes.
        check: raises where a later stage could not follow; called once the log is read.
        with_evidence: who draws only does without.
        with_teacher: only who pretrains is taught; takes the evidence.
        executor: does what can be shared out.

    Raises:
        ValueError, FileNotFoundError: from the stages.
    """
    given, links = config, StageLinks(run_dir=config.run_dir)
    split, config = watch.main_first(
        "log", lambda: prepare_log(given, links, claim=claim, check=check)
    )
    graph, config = watch.main_first(
        "graph", lambda: prepare_graph(split, config, links, executor)
    )
    evidence, teacher = None, NO_SOFT_TARGETS
    if with_evidence or with_teacher:
        known = watch.main_first(
            "evidence", lambda: prepare_evidence(split, config, links, executor)
        )
        evidence = known
        if with_teacher:
            teacher = watch.main_first(
                "teacher",
                lambda: prepare_teacher(split, config, links, executor),
            )
    tokens = watch.main_first(
        "tokens", lambda: prepare_tokens(split, graph, config, links)
    )
    main_rank_first(lambda: links.move_where_settled(config))
    return Prepared(
        split=split,
        graph=graph,
        evidence=evidence,
        teacher=teacher,
        tokens=tokens,
        config=config,
        links=links,
    )


def build_run(made: Prepared, ranks: Ranks, tracker: Tracker) -> OpenRun:
    """The model as it starts, to be trained or restored."""
    trainee = build_trainee(
        made.split, made.teacher, made.tokens, made.config, ranks, tracker
    )
    return OpenRun(trainee=trainee, made=made, ranks=ranks, step=0)


def open_run(config: RunConfig, ranks: Ranks, *, with_evidence: bool = True) -> OpenRun:
    """A trained run with the weights that pretraining shipped, to rank and draw.

    Nothing is written but a stage that is missing.

    Raises:
        FileNotFoundError: where the run is not trained, before anything is prepared.
        ValueError: naming what is damaged, or of other settings.
    """
    best = config.run_dir / BEST
    if latest_checkpoint(best) is None:
        raise FileNotFoundError(f"{best} holds no checkpoint: train the run first")
    made = prepare_run(
        config, Stopwatch(), claim=Claim(use="read"), with_evidence=with_evidence
    )
    opened = build_run(made, ranks, Tracker(made.config.run_dir, enabled=False))
    step = restore_best(opened.trainee).step
    opened.trainee.dmp.eval()
    return dataclasses.replace(opened, step=step)


def write_config(made: Prepared) -> None:
    """The resolved settings, commit and versions, into the run's folder.

    And the links to what was prepared by these settings, right before.
    """
    if is_main_rank():
        config = made.config
        made.links.move()
        config.write(config.run_dir / CONFIG)
        write_json(config.run_dir / META, describe_run())
