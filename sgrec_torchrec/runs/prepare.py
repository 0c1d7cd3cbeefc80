"""Log, graph, evidence and tokens of a run: made once, reused while inputs stay.

Turns settings into the folders ``canonical/ split/ graph/ evidence/ scorer/ ...``
of a run. They are links into ``<out_dir>/prepared``, where a folder's name holds the
hash of the settings that made it and of the stages before. So a second call does no
work again, and runs that differ only in later settings share what they can.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sgrec_torchrec.config import GraphConfig, RunConfig
from sgrec_torchrec.config.registry import IMPORTERS
from sgrec_torchrec.distributed.executor import HERE, Executor
from sgrec_torchrec.distributed.main_rank import is_main_rank, verifies_files
from sgrec_torchrec.evidence.builders import MAX_DISTANCE
from sgrec_torchrec.evidence.cross_fit import CrossFit
from sgrec_torchrec.evidence.gather import num_features
from sgrec_torchrec.evidence.held_out import hold_out
from sgrec_torchrec.evidence.prior import (
    EvidencePrior,
    load_held_out,
    load_relations,
    save_evidence,
)
from sgrec_torchrec.evidence.scorer import fit_scorer, load_scorer, save_scorer
from sgrec_torchrec.evidence.soft_targets import soft_targets
from sgrec_torchrec.evidence.texts import Texts, write_texts
from sgrec_torchrec.files.array_folder import read_arrays, write_arrays
from sgrec_torchrec.files.atomic import atomic_folder
from sgrec_torchrec.files.room import check_room
from sgrec_torchrec.files.run_folder import (
    CANONICAL,
    COVISITS,
    EVIDENCE,
    GRAPH,
    GRAPH_FORM,
    SCORER,
    SCORER_WEIGHTS,
    SPLIT,
    TEACHER,
    TEXTS,
    TOKENS,
)
from sgrec_torchrec.files.sealed_json import naming, read_sealed, write_sealed
from sgrec_torchrec.item_graph.choose import choose_graph
from sgrec_torchrec.item_graph.covisitation import fit_ends
from sgrec_torchrec.item_graph.graph import ItemGraph, build_graph
from sgrec_torchrec.item_graph.pair_counts import PairCounts
from sgrec_torchrec.item_graph.pair_runs import bytes_for_pairs
from sgrec_torchrec.item_graph.pair_shards import Period, count_shards
from sgrec_torchrec.item_tokens.build import build_tokens, load_tokens
from sgrec_torchrec.logs.importers import import_log
from sgrec_torchrec.logs.importers.locate import fingerprint
from sgrec_torchrec.logs.measure import measure_log, resolve
from sgrec_torchrec.logs.sampling import NO_SOFT_TARGETS, SoftTargets
from sgrec_torchrec.logs.split import load_split, prepare_split
from sgrec_torchrec.logs.stream import resolved
from sgrec_torchrec.runs.claim import Claim
from sgrec_torchrec.runs.log_room import check_room_for_log
from sgrec_torchrec.runs.made_once import made, once, parts_of
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.schema import ItemTokens, SplitLog

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

    def bring_in(folder: Path) -> None:
        check_room_for_log(config)
        import_log(log, folder)

    canonical = made(config, CANONICAL, source_of(config), bring_in)
    split_dir = made(
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


def source_of(config: RunConfig) -> list[object]:
    """What the imported log is made from; no file is read for that.

    Raises:
        ValueError, FileNotFoundError: as ``fingerprint``.
    """
    source, path = config.log.source, config.log.path
    return [IMPORTERS.signature(source), path, fingerprint(source, path)]


def _pairs(
    split: SplitLog,
    config: RunConfig,
    links: StageLinks,
    fit_on: str,
    executor: Executor,
) -> PairCounts:
    """The counted pairs of a period: the graph's, and by fold the evidence's."""
    period = Period(
        fit_on=fit_on,
        max_distance=max(MAX_DISTANCE, config.graph.max_distance),
        num_folds=config.evidence.num_folds,
        seed=config.log.seed,
    )

    def count(folder: Path) -> None:
        end_U = fit_ends(split.sequences, fit_on)
        needed = bytes_for_pairs(end_U, period.max_distance)
        check_room(folder.parent, needed, "the log's counted pairs")
        with parts_of(folder) as parts:
            count_shards(
                split.sequences,
                links.folder_of(SPLIT),
                folder,
                period,
                executor,
                parts=parts,
            )

    inputs = [
        links.name_of(SPLIT),
        fit_on,
        period.max_distance,
        period.num_folds,
        period.seed,
    ]
    return PairCounts.load(made(config, COVISITS, inputs, count))


def prepare_graph(
    split: SplitLog, config: RunConfig, links: StageLinks, executor: Executor = HERE
) -> tuple[ItemGraph, RunConfig]:
    """The item graph of the period to learn from; its form chosen by the valid rows."""
    split_name = links.name_of(SPLIT)

    def choose(folder: Path) -> None:
        is_open = config.graph.text_weight is None
        chosen = choose_graph(
            split,
            config.graph,
            filter_seen=config.log.filter_seen,
            counts=(
                _pairs(split, config, links, "train", executor) if is_open else None
            ),
        )
        with atomic_folder(folder) as temporary:
            facts = {"format_version": FORM_FORMAT, **dataclasses.asdict(chosen)}
            write_sealed(temporary / FORM, facts)

    form_dir = once(
        config,
        links,
        GRAPH_FORM,
        [split_name, config.graph, config.log.filter_seen],
        choose,
    )
    settings = read_form(form_dir / FORM)
    fit_on = config.log.fit_on

    def build(folder: Path) -> None:
        counts = _pairs(split, config, links, fit_on, executor)
        build_graph(split, settings, fit_on, folder, counts=counts)

    folder = once(config, links, GRAPH, [split_name, settings, fit_on], build)
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


def prepare_texts(split: SplitLog, config: RunConfig, links: StageLinks) -> Texts:
    """How like the texts of items are, as the evidence compares them."""
    settings = config.evidence

    def write(folder: Path) -> None:
        write_texts(split.catalogue, settings, folder)

    inputs = [links.name_of(SPLIT), settings.max_neighbours]
    return Texts.load(made(config, TEXTS, inputs, write))


def prepare_evidence(
    split: SplitLog, config: RunConfig, links: StageLinks, executor: Executor = HERE
) -> EvidencePrior:
    """Item relations of the period to learn from, and the scorer fitted on it.

    Relations and training rows are shared by runs that differ in ``config.seed``, which
    is the scorer's.
    """
    settings, log = config.evidence, config.log
    filter_seen = bool(log.filter_seen)
    folder = once(
        config,
        links,
        EVIDENCE,
        [links.name_of(SPLIT), settings, log.fit_on, filter_seen],
        lambda folder: _gather(split, config, links, folder, executor),
    )
    relations = load_relations(folder, settings.relation_names())
    width = num_features(relations.num_relations)

    def fit(scorer_dir: Path) -> None:
        scorer = fit_scorer(load_held_out(folder), settings, width, config.seed)
        with atomic_folder(scorer_dir) as temporary:
            save_scorer(scorer, temporary / SCORER_WEIGHTS)

    scorer_dir = once(config, links, SCORER, [folder.name, config.seed], fit)
    return EvidencePrior(
        relations=relations,
        scorer=load_scorer(scorer_dir / SCORER_WEIGHTS, settings, width),
        config=settings,
        filter_seen=filter_seen,
    )


def prepare_teacher(
    split: SplitLog,
    config: RunConfig,
    links: StageLinks,
    executor: Executor = HERE,
) -> SoftTargets:
    """What the evidence would have expected of the training period's newest events."""
    if not config.pretrain.teacher_weight or not config.pretrain.teacher_samples:
        return NO_SOFT_TARGETS

    def teach(folder: Path) -> None:
        with _cross_fit(split, config, links, folder, executor) as fit:
            taught = soft_targets(fit, links.folder_of(SCORER) / SCORER_WEIGHTS)
            facts = {"format_version": TAUGHT_FORMAT}
            write_arrays(folder / TAUGHT, taught._asdict(), facts)

    folder = once(config, links, TEACHER, [links.name_of(SCORER)], teach)
    return read_taught(folder)


def read_taught(folder: Path) -> SoftTargets:
    """The soft targets; see ``read_arrays`` for errors."""
    arrays, _ = read_arrays(
        folder / TAUGHT,
        SoftTargets._fields,
        {},
        format_version=TAUGHT_FORMAT,
        what="the soft targets",
        verify=verifies_files(),
    )
    return SoftTargets(**arrays)


def _gather(
    split: SplitLog,
    config: RunConfig,
    links: StageLinks,
    folder: Path,
    executor: Executor,
) -> None:
    with _cross_fit(split, config, links, folder, executor) as fit:
        held_out = hold_out(fit, with_whole=True)
        save_evidence(folder, fit.whole(), held_out, config.evidence)


@contextmanager
def _cross_fit(
    split: SplitLog,
    config: RunConfig,
    links: StageLinks,
    folder: Path,
    executor: Executor,
) -> Iterator[CrossFit]:
    """What the tasks that make a stage's folder read."""
    log, settings = config.log, config.evidence
    counts = _pairs(split, config, links, log.fit_on, executor)
    texts = prepare_texts(split, config, links)
    with parts_of(folder) as parts:
        yield CrossFit(
            sequences=split.sequences,
            fit_on=log.fit_on,
            split_dir=links.folder_of(SPLIT),
            counts=counts,
            texts=texts,
            config=settings,
            max_history=resolved("evidence.max_history", settings.max_history),
            filter_seen=bool(log.filter_seen),
            seed=log.seed,
            parts=parts,
            executor=executor,
        )


def prepare_tokens(
    split: SplitLog, graph: ItemGraph, config: RunConfig, links: StageLinks
) -> ItemTokens:
    """The semantic IDs, from text and from the graph."""
    folder = once(
        config,
        links,
        TOKENS,
        [links.name_of(GRAPH), config.tokens],
        lambda folder: build_tokens(split, graph, config.tokens, folder),
    )
    return load_tokens(folder)
