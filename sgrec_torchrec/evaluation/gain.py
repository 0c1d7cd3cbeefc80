"""What post-training changed: the pretrained model against the one that ships.

Reads the hits of both evaluations of a run; writes ``aligned/gain.json``.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sgrec_torchrec.evaluation.compare import compare, hits_path
from sgrec_torchrec.evaluation.offline import (
    GENERATOR,
    NETWORK_ALONE,
    without_nan,
)
from sgrec_torchrec.files.run_folder import (
    ALIGNED,
    EVALUATION,
    EVALUATION_PRETRAINED,
    GAIN,
)
from sgrec_torchrec.files.sealed_json import write_sealed


def write_gain(run_dir: Path) -> None:
    """Compare both on the same rows, users as the unit; call it on one rank.

    A system that one of them lacks (the network alone, where no evidence is mixed in)
    is left out.

    Raises:
        FileNotFoundError: where either has not been evaluated.
    """
    gains = {}
    for system in (GENERATOR, NETWORK_ALONE):
        before, after = (
            hits_path(run_dir / folder, system)
            for folder in (EVALUATION_PRETRAINED, EVALUATION)
        )
        if system == NETWORK_ALONE and not (before.is_file() and after.is_file()):
            continue
        gains[system] = asdict(compare(before, after))
    # Too few users allow no interval.
    plain: Any = without_nan(gains)
    write_sealed(run_dir / ALIGNED / GAIN, plain)
