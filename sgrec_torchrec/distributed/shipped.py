"""A run's settings -> those of the weights that its folder ships at this moment.

``config.json`` tells what a run is to become, and post-training ships for the first
time minutes later. A process killed between the two leaves a folder that opens. So
does a run that begins anew, whose first weights end what was made of those before.
"""

import sys
from dataclasses import replace
from pathlib import Path

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint, read_extra
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.files.content_key import folder_key
from sgrec_torchrec.files.run_folder import ALIGNED, BEST


def as_shipped(config: RunConfig, run_dir: Path) -> RunConfig:
    """Without post-training where that has shipped nothing yet, which is said.

    Until then a run stands for its pretrained weights. What was post-trained from
    others than those that ship now counts for nothing. No communication.

    Args:
        run_dir: where the run's files lie now.

    Raises:
        ValueError: naming the file of a checkpoint that is damaged.
    """
    if not config.align.num_steps:
        return config
    aligned = latest_checkpoint(run_dir / ALIGNED / BEST)
    pretrained = latest_checkpoint(run_dir / BEST)
    if pretrained is None or (aligned and _is_made_of(pretrained, aligned)):
        return config
    if is_main_rank():
        what = "nothing made of these weights" if aligned else "nothing"
        print(
            f"{run_dir}: post-training has shipped {what} yet, so this is the "
            "pretrained model; train.py --resume goes on",
            file=sys.stderr,
            flush=True,
        )
    return replace(config, align=replace(config.align, num_steps=0))


def _is_made_of(pretrained: Path, aligned: Path) -> bool:
    """Of these weights; tables may have grown since. An older version names none."""
    weights = str(read_extra(aligned).get("made_of") or "").partition("-")[0]
    return weights in ("", folder_key(pretrained)[:16])
