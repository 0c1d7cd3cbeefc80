"""A trained run's folder -> the parts of a recommender, in this process alone.

Trained sharded over any number of ranks, read whole. Reads only; what training prepared
must lie beside the run, as training left it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import (
    check_config,
    latest_checkpoint,
    load_unsharded,
)
from sgrec_torchrec.distributed.checkpoint_files import FOLDER_NAME, read_manifest
from sgrec_torchrec.distributed.keeper import check_data
from sgrec_torchrec.distributed.shipped import as_shipped
from sgrec_torchrec.evidence.gather import num_features
from sgrec_torchrec.evidence.prior import EvidencePrior, load_relations
from sgrec_torchrec.evidence.scorer import load_scorer
from sgrec_torchrec.files.run_folder import (
    ALIGNED,
    BEST,
    CONFIG,
    EVALUATION,
    EVIDENCE,
    ITEMS,
    RESULTS,
    SCORER,
    SCORER_WEIGHTS,
    SPLIT,
    TOKENS,
)
from sgrec_torchrec.files.sealed_json import RESULTS_FORMAT, read_sealed
from sgrec_torchrec.files.text_column import taken
from sgrec_torchrec.item_tokens.build import load_tokens
from sgrec_torchrec.item_tokens.prefix_trie import PrefixTrie
from sgrec_torchrec.logs.split_store import load_split, read_catalogue, read_facts
from sgrec_torchrec.schema import SplitLog
from sgrec_torchrec.serving.catalogue import (
    ItemId,
    ServedCatalogue,
    as_text,
    shown,
)
from sgrec_torchrec.serving.history import History
from sgrec_torchrec.serving.parts import Parts, ServingSettings, empty_network


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """Where a run's files lie."""

    run_dir: Path
    checkpoint: Path
    config: RunConfig


def find_run(path: Path) -> FoundRun:
    """A run's folder, or one of its checkpoints, as the files of that run.

    A run's folder stands for the checkpoint that its evaluation ranked with: the best
    of post-training where the run has any, else the best of pretraining
    (``as_shipped``).

    Raises:
        FileNotFoundError: where there is no run or no checkpoint.
        ValueError: where the checkpoint is of another run.
    """
    if FOLDER_NAME.fullmatch(path.name):
        run_dir = path.parent.parent
        if run_dir.name == ALIGNED:
            run_dir = run_dir.parent
        config = RunConfig.read(path / CONFIG)
        return FoundRun(run_dir=run_dir, checkpoint=path, config=config)
    config = as_shipped(RunConfig.read(path / CONFIG), path)
    folder = path / ALIGNED / BEST if config.align.num_steps else path / BEST
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: train the run first, or name a checkpoint"
        )
    check_config(checkpoint, config.to_json())
    return FoundRun(run_dir=path, checkpoint=checkpoint, config=config)


def read_run(path: Path, *, with_evidence: bool = True) -> Parts:
    """The parts of a recommender, with all sums verified. No process group is needed.

    Args:
        path: as ``find_run``.
        with_evidence: False leaves the evidence out.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: naming the file that is damaged or of another model.
    """
    found = find_run(path)
    config, run_dir = found.config, found.run_dir
    split_dir = _stage(run_dir, SPLIT)
    # Of the log only its catalogue is served: the events stay on disk.
    facts = read_facts(split_dir)
    catalogue = read_catalogue(split_dir, facts)
    tokens = load_tokens(_stage(run_dir, TOKENS))
    if tokens.num_items != len(catalogue):
        raise ValueError(
            f"{run_dir / TOKENS} names {tokens.num_items} items, {split_dir / ITEMS} "
            f"{len(catalogue)}: they are of two logs; train the run again"
        )
    check_data(config, run_dir, found.checkpoint)
    settings = ServingSettings(
        generator=config.generator,
        # What was built is read: who serves needs no package that built it.
        evidence=replace(config.evidence, relations=None),
        num_items=tokens.num_items,
        num_levels=tokens.num_levels,
        num_codes=tokens.num_codes,
        event_types=tuple(facts["event_types"]),
        has_clock=bool(facts["has_clock"]),
        has_value=bool(facts["has_value"]),
        max_history=config.log.max_history,
        beam_width=config.evaluation.beam_width,
        filter_seen=bool(config.log.filter_seen),
        prior_weight=_prior_weight(run_dir, config),
        made_of=f"{config.name}, step {read_manifest(found.checkpoint).step}",
    )
    network = empty_network(settings)
    network.to_empty(device=torch.device("cpu"))
    load_unsharded(found.checkpoint, network)
    return Parts(
        network=network,
        trie=PrefixTrie.build(tokens.codes_NL, tokens.num_codes),
        catalogue=ServedCatalogue(
            catalogue.item_ids,
            catalogue.titles,
            catalogue.categories,
            str(split_dir / ITEMS),
        ),
        evidence=_evidence(run_dir, config, settings) if with_evidence else None,
        settings=settings,
    )


def event_types(run_dir: Path) -> tuple[str, ...]:
    """Names of the log's event types, in the order of their numbers."""
    return tuple(read_facts(_stage(run_dir, SPLIT))["event_types"])


def logged_history(path: Path, user_id: ItemId) -> History:
    """All events of a user of the log that a run was trained on.

    Args:
        path: as ``find_run``.
        user_id: as the log has it; an integer stands for its text.

    Raises:
        FileNotFoundError: where there is no run.
        ValueError: for a damaged log, or a user whom it does not know.
    """
    run_dir = find_run(path).run_dir
    split = load_split(_stage(run_dir, SPLIT))
    return user_history(split, event_types(run_dir), user_id)


def user_history(split: SplitLog, names: tuple[str, ...], user_id: ItemId) -> History:
    """All events of a user of the log, whatever period they belong to.

    Raises:
        ValueError: for a user whom the log does not know.
    """
    try:
        user = split.user_ids.index(as_text(user_id) or "")
    except ValueError:
        raise ValueError(
            f"user {shown(user_id)} is not among the {len(split.user_ids)} users of "
            f"the log, as {', '.join(map(shown, split.user_ids[:3]))}; give a history "
            "with --item instead"
        ) from None
    return row_history(split, names, user, int(split.sequences.offsets_U1[user + 1]))


def row_history(
    split: SplitLog, names: tuple[str, ...], user: int, end: int
) -> History:
    """A user's events up to row ``end`` of the log, as a caller would give them."""
    sequences = split.sequences
    rows = slice(int(sequences.offsets_U1[user]), end)
    values = sequences.values_R[rows]
    return History(
        item_ids=taken(split.catalogue.item_ids, sequences.items_R[rows]),
        timestamps=sequences.timestamps_R[rows].tolist(),
        values=[None if value != value else float(value) for value in values],
        events=[
            names[event] if event >= 0 else None for event in sequences.events_R[rows]
        ],
    )


def _evidence(
    run_dir: Path, config: RunConfig, settings: ServingSettings
) -> EvidencePrior | None:
    if settings.prior_weight == 0:
        return None
    scorer = _stage(run_dir, SCORER) / SCORER_WEIGHTS
    asked = config.evidence
    relations = load_relations(
        _stage(run_dir, EVIDENCE),
        None if asked.relations is None else asked.relation_names(),
    )
    width = num_features(relations.num_relations)
    return EvidencePrior(
        relations=relations,
        scorer=load_scorer(scorer, settings.evidence, width),
        config=settings.evidence,
        filter_seen=settings.filter_seen,
    )


def _prior_weight(run_dir: Path, config: RunConfig) -> float | None:
    """What the evaluation wrote; else what the settings fix."""
    path = run_dir / EVALUATION / RESULTS
    if not path.is_file():
        return config.evaluation.prior_weight
    results = read_sealed(
        path,
        {"prior_weight": (float, int)},
        format_version=RESULTS_FORMAT,
        mend="evaluate the run again",
    )
    return float(results["prior_weight"])


def _stage(run_dir: Path, name: str) -> Path:
    folder = run_dir / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: a run is served from where it was trained, with "
            "`prepared` beside it; elsewhere load a package (sgrec export)"
        )
    return folder
