"""A stage's inputs -> its folder below ``prepared``, made once and then only read.

A folder's name holds the hash of the settings that made it and of the stages before. It
appears whole, so a folder that is there is never made again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sgrec_torchrec.config import (
    EvidenceConfig,
    GraphConfig,
    LogConfig,
    RunConfig,
    TokenConfig,
    settled,
)
from sgrec_torchrec.config.registry import RELATIONS
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.evidence.prior import FIRST_RELATIONS
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.run_folder import (
    COVISITS,
    EVIDENCE,
    GRAPH,
    GRAPH_FORM,
    PREPARED,
)
from sgrec_torchrec.runs.stage_links import StageLinks
from sgrec_torchrec.runs.steps import alone

FORMATS = {COVISITS: 2, GRAPH_FORM: 2, GRAPH: 2, EVIDENCE: 2}
"""Raised from 1 when a stage's output changes meaning: folders of the one before serve
the runs that were trained on them, and no others."""


def once(
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
        folder = made(config, stage, inputs, build)
    links.add(stage, folder)
    return folder


def made(
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
    folder = place_of(config, stage, inputs)
    if folder.exists():
        return folder
    if not is_main_rank():
        raise FileNotFoundError(f"{folder} is not visible to this rank")
    build(folder)
    return folder


def place_of(config: RunConfig, stage: str, inputs: Sequence[object]) -> Path:
    """Where ``made`` makes a stage, whether it is there or not."""
    return _place(config, stage, inputs, FORMATS.get(stage, 1))


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


@contextmanager
def parts_of(folder: Path) -> Iterator[Path]:
    """Where the tasks that make a stage write; it goes once the stage is there.

    A call that was ended or killed leaves it: the next one goes on from what is done.

    Raises:
        BlockingIOError: where another process is making the same.
    """
    parts = folder.resolve().with_name(f".{folder.name}.parts")
    with alone(parts):
        for stale in parts.glob(".*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        yield parts
    shutil.rmtree(parts, ignore_errors=True)
