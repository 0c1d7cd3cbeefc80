"""Log, graph, evidence and tokens of a run: made once, reused while inputs stay.

Turns settings into the folders ``canonical/ split/ graph/ evidence/ scorer/ ...``
of a run. They are links into ``<out_dir>/prepared``, where a folder's name holds the
hash of the settings that made it and of the stages before. So a second call does no
work again, and runs that differ only in later settings share what they can.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from sgrec_torchrec.config import (
    EvidenceConfig,
    GraphConfig,
    LogConfig,
    RunConfig,
    TokenConfig,
    settled,
)
from sgrec_torchrec.config.registry import IMPORTERS, RELATIONS
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evidence.builders import MAX_DISTANCE
from sgrec_torchrec.evidence.gather import num_features
from sgrec_torchrec.evidence.held_out import fold_of_users, hold_out
from sgrec_torchrec.evidence.prior import (
    FIRST_RELATIONS,
    EvidencePrior,
    load_held_out,
    load_relations,
    save_evidence,
)
from sgrec_torchrec.evidence.relations import build_relations, text_relation
from sgrec_torchrec.evidence.scorer import fit_scorer, load_scorer, save_scorer
from sgrec_torchrec.evidence.soft_targets import soft_targets
from sgrec_torchrec.files.array_folder import read_arrays, write_arrays
from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.room import check_room
from sgrec_torchrec.files.run_folder import (
    CANONICAL,
    COVISITS,
    EVIDENCE,
    GRAPH,
    GRAPH_FORM,
    PREPARED,
    SCORER,
    SCORER_WEIGHTS,
    SPLIT,
    TEACHER,
    TOKENS,
)
from sgrec_torchrec.files.sealed_json import naming, read_sealed, write_sealed
from sgrec_torchrec.item_graph.choose import choose_graph
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_graph.graph import ItemGraph, build_graph
from sgrec_torchrec.item_graph.pair_counts import PairCounts, count_pairs
from sgrec_torchrec.item_graph.pair_runs import bytes_for_pairs
from sgrec_torchrec.item_tokens.build import build_tokens, load_tokens
from sgrec_torchrec.logs.importers import import_log
from sgrec_torchrec.logs.importers.locate import fingerprint
from sgrec_torchrec.logs.measure import measure_log, resolve
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS, SoftTargets
from sgrec_torchrec.logs.split import load_split, prepare_split
from sgrec_torchrec.logs.stream import resolved
from sgrec_torchrec.runs.claim import Claim
from sgrec_torchrec.runs.log_room import check_room_for_log
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.schema import ItemTokens, SplitLog

FORMATS = {GRAPH_FORM: 2, GRAPH: 2, EVIDENCE: 2}
"""Raised from 1 when a stage's output changes meaning: folders of the one before serve
the runs that were trained on them, and no others."""
FORM = "settings.json"
FORM_FORMAT = 1
"""Of what that file says."""
TAUGHT = "teacher.json"
TAUGHT_FORMAT = 2


def prepare_log(
    config: RunConfig,
    links: StageLinks,
    *,
    claim: Claim | None = None,
    check: Callable[[SplitLog, RunConfig], None] | None = None,
) -> tuple[SplitLog, RunConfig]:
    """Import and split the log; fill every open setting from what is measured on it.

    Nothing of the run's folder changes before all checks have passed.

    Args:
        links: of the run's folder; takes log and split, and below what follows.
        claim: refuses what the folder's model does not go with.
        check: raises where a later stage could not follow.

    Raises:
        ValueError, FileNotFoundError: from the importer or the split, naming file,
            column, row and the mend; from the claim; from ``check``.
    """
    # What the others would compare may be replaced already when their turn comes.
    claim = claim if is_main_rank() else None
    if claim is not None:
        claim.check_given(config)
    log = dataclasses.replace(config.log, fit_on="train", filter_seen=None)
    importer = IMPORTERS.signature(log.source)
    source = [importer, log.path, fingerprint(log.source, log.path)]

    def bring_in(folder: Path) -> None:
        check_room_for_log(config)
        import_log(log, folder)

    canonical = _made(config, CANONICAL, source, bring_in)
    split_dir = _made(
        config,
        SPLIT,
        [canonical.name, log],
        lambda folder: prepare_split(canonical, log, folder),
    )
    split = load_split(split_dir)
    known = resolve(config, measure_log(split))
    if claim is not None:
        claim.check_resolved(known, split_dir)
    if check is not None:
        check(split, known)
    if claim is not None:
        claim.take(config)
    for stage, folder in ((CANONICAL, canonical), (SPLIT, split_dir)):
        links.add(stage, folder)
    return split, known


def _pairs(
    split: SplitLog, config: RunConfig, links: StageLinks, fit_on: str
) -> PairCounts:
    """The counted pairs of a period: the graph's, and by fold the evidence's."""
    reach = max(MAX_DISTANCE, config.graph.max_distance)
    folds, seed = config.evidence.num_folds, config.log.seed

    def count(folder: Path) -> None:
        sequences, end_U = split.sequences, fit_ends(split.sequences, fit_on)
        needed = bytes_for_pairs(end_U, reach)
        check_room(folder.parent, needed, "the log's counted pairs")
        count_pairs(
            sequences,
            end_U,
            folder,
            max_distance=reach,
            fold_U=fold_of_users(sequences.num_users, config.evidence, seed),
            num_folds=folds,
        )

    split_name = links.name_of(SPLIT)
    inputs = [split_name, fit_on, reach, folds, seed]
    return PairCounts.load(_made(config, COVISITS, inputs, count))


def prepare_graph(
    split: SplitLog, config: RunConfig, links: StageLinks
) -> tuple[ItemGraph, RunConfig]:
    """The item graph of the period to learn from; its form chosen by the valid rows."""
    split_name = links.name_of(SPLIT)

    def choose(folder: Path) -> None:
        is_open = config.graph.text_weight is None
        chosen = choose_graph(
            split,
            config.graph,
            filter_seen=config.log.filter_seen,
            counts=_pairs(split, config, links, "train") if is_open else None,
        )
        with atomic_folder(folder) as temporary:
            facts = {"format_version": FORM_FORMAT, **dataclasses.asdict(chosen)}
            write_sealed(temporary / FORM, facts)

    form_dir = _once(
        config,
        links,
        GRAPH_FORM,
        [split_name, config.graph, config.log.filter_seen],
        choose,
    )
    settings = read_form(form_dir / FORM)
    fit_on = config.log.fit_on

    def build(folder: Path) -> None:
        counts = _pairs(split, config, links, fit_on)
        build_graph(split, settings, fit_on, folder, counts=counts)

    folder = _once(config, links, GRAPH, [split_name, settings, fit_on], build)
    return ItemGraph.load(folder), dataclasses.replace(config, graph=settings)


def read_form(path: Path) -> GraphConfig:
    """The chosen settings of the graph.

    Raises:
        FileNotFoundError, ValueError: as ``read_sealed``.
    """
    mend = f"delete {path.parent}, and the next call chooses again"
    plain = read_sealed(path, {}, format_version=FORM_FORMAT, mend=mend)
    plain.pop("format_version", None)
    with naming(path, mend):
        return GraphConfig(**plain)


def prepare_evidence(
    split: SplitLog, config: RunConfig, links: StageLinks
) -> EvidencePrior:
    """Item relations of the period to learn from, and the scorer fitted on it.

    Relations and training rows are shared by runs that differ in ``config.seed``, which
    is the scorer's.
    """
    settings, log = config.evidence, config.log
    filter_seen = bool(log.filter_seen)
    folder = _once(
        config,
        links,
        EVIDENCE,
        [links.name_of(SPLIT), settings, log.fit_on, filter_seen],
        lambda folder: _gather(split, config, links, folder),
    )
    relations = load_relations(folder, settings.relation_names())
    width = num_features(relations.num_relations)

    def fit(scorer_dir: Path) -> None:
        scorer = fit_scorer(load_held_out(folder), settings, width, config.seed)
        with atomic_folder(scorer_dir) as temporary:
            save_scorer(scorer, temporary / SCORER_WEIGHTS)

    scorer_dir = _once(config, links, SCORER, [folder.name, config.seed], fit)
    return EvidencePrior(
        relations=relations,
        scorer=load_scorer(scorer_dir / SCORER_WEIGHTS, settings, width),
        config=settings,
        filter_seen=filter_seen,
    )


def prepare_teacher(
    split: SplitLog, evidence: EvidencePrior, config: RunConfig, links: StageLinks
) -> SoftTargets:
    """What the evidence would have expected of the training period's newest events."""
    if not config.pretrain.teacher_weight or not config.pretrain.teacher_samples:
        return NO_SOFT_TARGETS
    settings = config.evidence

    def teach(folder: Path) -> None:
        taught = soft_targets(
            split.sequences,
            fit_ends(split.sequences, config.log.fit_on),
            text_relation(split.catalogue, settings),
            evidence.scorer,
            settings,
            max_history=resolved("evidence.max_history", settings.max_history),
            filter_seen=evidence.filter_seen,
            seed=config.log.seed,
            catalogue=split.catalogue,
            counts=_pairs(split, config, links, config.log.fit_on),
        )
        facts = {"format_version": TAUGHT_FORMAT}
        write_arrays(folder / TAUGHT, taught._asdict(), facts)

    folder = _once(config, links, TEACHER, [links.name_of(SCORER)], teach)
    return read_taught(folder)


def read_taught(folder: Path) -> SoftTargets:
    """The soft targets; see ``read_arrays`` for errors."""
    arrays, _ = read_arrays(
        folder / TAUGHT,
        SoftTargets._fields,
        {},
        format_version=TAUGHT_FORMAT,
        what="the soft targets",
    )
    return SoftTargets(**arrays)


def _gather(
    split: SplitLog, config: RunConfig, links: StageLinks, folder: Path
) -> None:
    sequences, settings = split.sequences, config.evidence
    counts = _pairs(split, config, links, config.log.fit_on)
    end_U = fit_ends(sequences, config.log.fit_on)
    text = text_relation(split.catalogue, settings)
    held_out = hold_out(
        sequences,
        end_U,
        text,
        settings,
        max_history=resolved("evidence.max_history", settings.max_history),
        filter_seen=bool(config.log.filter_seen),
        seed=config.log.seed,
        catalogue=split.catalogue,
        counts=counts,
    )
    relations = build_relations(
        sequences, end_U, text, settings, split.catalogue, counts=counts
    )
    save_evidence(folder, relations, held_out, settings)


def prepare_tokens(
    split: SplitLog, graph: ItemGraph, config: RunConfig, links: StageLinks
) -> ItemTokens:
    """The semantic IDs, from text and from the graph."""
    folder = _once(
        config,
        links,
        TOKENS,
        [links.name_of(GRAPH), config.tokens],
        lambda folder: build_tokens(split, graph, config.tokens, folder),
    )
    return load_tokens(folder)


def _once(
    config: RunConfig,
    links: StageLinks,
    stage: str,
    inputs: Sequence[object],
    build: Callable[[Path], object],
) -> Path:
    """Build the stage's folder unless it is there; note it among the links."""
    older = _place(config, stage, inputs, FORMATS.get(stage, 1) - 1)
    folder = older
    if not links.leads_to(stage, older):
        folder = _made(config, stage, inputs, build)
    links.add(stage, folder)
    return folder


def _made(
    config: RunConfig,
    stage: str,
    inputs: Sequence[object],
    build: Callable[[Path], object],
) -> Path:
    """Build the stage's folder unless it is there.

    ``build`` writes through a temporary name, so a folder that is there is whole. Only
    the main rank builds. The others come after it (``main_rank_first``) and
    only read.

    Raises:
        FileNotFoundError: on another rank that does not see the folder.
    """
    folder = _place(config, stage, inputs, FORMATS.get(stage, 1))
    if folder.exists():
        return folder
    if not is_main_rank():
        raise FileNotFoundError(f"{folder} is not visible to this rank")
    build(folder)
    return folder


def _place(
    config: RunConfig, stage: str, inputs: Sequence[object], version: int
) -> Path:
    """Where a stage made of these inputs lies, in a version of its meaning."""
    key = content_key([version, stage, *map(_plain, inputs)])[:16]
    return Path(config.out_dir) / PREPARED / f"{stage}-{key}"


def _plain(part: object) -> object:
    """A part of a key as JSON values."""
    if isinstance(part, LogConfig | GraphConfig | TokenConfig):
        return settled(part)
    if not isinstance(part, EvidenceConfig):
        return part
    plain = settled(part)
    plain.pop("relations", None)
    names = part.relation_names()
    # Older folders are of these, and their keys name none.
    if names != FIRST_RELATIONS:
        plain["relations"] = [RELATIONS.signature(name) for name in names]
    return plain
