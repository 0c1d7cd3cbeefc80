"""What weights are trained on -> a key for each prepared stage, compared on load.

A key stands for the sums of the stage's files, so it is read from a manifest alone. It
is kept in the manifest of a checkpoint: weights answer with no other run's tokens.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from sgrec_torchrec.files.atomic import sha256_file
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.run_folder import (
    EVIDENCE,
    GRAPH,
    GRAPH_MANIFEST,
    MANIFEST,
    QUALITY,
    QUALITY_PICTURE,
    SCORER,
    SCORER_WEIGHTS,
    SPLIT,
    TEACHER,
    TOKENS,
)
from sgrec_torchrec.files.sealed_json import naming, without_seal

NAMED_BY = {
    SPLIT: MANIFEST,
    GRAPH: GRAPH_MANIFEST,
    EVIDENCE: "evidence.json",
    SCORER: SCORER_WEIGHTS,
    TEACHER: "teacher.json",
    TOKENS: MANIFEST,
}
"""Of each stage the file that names the others; the scorer is one file."""
OF_EVIDENCE = (EVIDENCE, SCORER, TEACHER)
"""Stages that a run may have again by other settings of the evidence."""
REPORTS = (QUALITY, QUALITY_PICTURE)
MEND = "restore what it was trained on, or train the run again"


def stage_key(stage: str, folder: Path) -> str:
    """Hex SHA-256 over the sums of the stage in ``folder``.

    Raises:
        ValueError: naming the manifest that is damaged.
    """
    path = folder / NAMED_BY[stage]
    if path.suffix != ".json":
        return sha256_file(path)
    with naming(path, MEND):
        manifest = without_seal(json.loads(path.read_bytes()))
        sums = manifest.get("sha256") or {
            name: entry["sha256"] for name, entry in manifest["files"].items()
        }
        return content_key({name: sums[name] for name in sums if name not in REPORTS})


def stage_keys(run_dir: Path) -> dict[str, str]:
    """Keys of all stages that a run's folder has."""
    return {
        stage: stage_key(stage, run_dir / stage)
        for stage, name in NAMED_BY.items()
        if (run_dir / stage / name).is_file()
    }


def check_stage_keys(
    checkpoint: Path,
    was: Mapping[str, str],
    run_dir: Path,
    *,
    free: Collection[str] = (),
) -> None:
    """Raise where a checkpoint was trained on other data than its run now has.

    Args:
        was: keys that the checkpoint names; none where an older version wrote it.
        free: stages that may differ.

    Raises:
        ValueError: naming what differs.
    """
    now = stage_keys(run_dir)
    other = [name for name in was if name in now and was[name] != now[name]]
    other = [name for name in other if name not in free]
    if other:
        places = ", ".join(str(run_dir / name) for name in other)
        raise ValueError(
            f"{checkpoint} was not trained on {places}: give a train.py --resume that "
            f"was killed again, {MEND}"
        )
