"""A finished run as a ranker again."""

from pathlib import Path

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.launch import Ranks
from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.files.tracking import Tracker
from sgrec_torchrec.generator.pretrain import restore_best
from sgrec_torchrec.generator.trainee import build_trainee
from sgrec_torchrec.runs.prepare import (
    prepare_evidence,
    prepare_graph,
    prepare_log,
    prepare_teacher,
    prepare_tokens,
)


def restored_ranker(run_dir: Path, ranks: Ranks) -> Ranker:
    """Its best weights, sharded over the given ranks, with what ranks rows."""
    split, config = prepare_log(RunConfig.read(run_dir / "config.json"))
    graph, config = prepare_graph(split, config)
    evidence = prepare_evidence(split, config)
    teacher = prepare_teacher(split, evidence, config)
    tokens = prepare_tokens(split, graph, config)
    nothing = Tracker(run_dir, enabled=False)
    trainee = build_trainee(split, teacher, tokens, config, ranks, nothing)
    restore_best(trainee)
    return Ranker(
        dmp=trainee.dmp,
        split=split,
        tokens=tokens,
        graph=graph,
        evidence=evidence,
        config=config,
        ranks=ranks,
    )
