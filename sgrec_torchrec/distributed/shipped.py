"""A run's settings -> those of the weights that its folder ships at this moment.

``config.json`` tells what a run is to become, and post-training ships for the first
time minutes later. A process killed between the two leaves a folder that opens.
"""

import sys
from dataclasses import replace
from pathlib import Path

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.distributed.checkpoint import latest_checkpoint
from sgrec_torchrec.distributed.main_rank import is_main_rank
from sgrec_torchrec.files.run_folder import ALIGNED, BEST


def as_shipped(config: RunConfig, run_dir: Path) -> RunConfig:
    """Without post-training where that has shipped nothing yet, which is said.

    Until then a run stands for its pretrained weights. No communication.

    Args:
        run_dir: where the run's files lie now.
    """
    if not config.align.num_steps or latest_checkpoint(run_dir / ALIGNED / BEST):
        return config
    if latest_checkpoint(run_dir / BEST) is None:
        return config
    if is_main_rank():
        print(
            f"{run_dir}: post-training has shipped nothing yet, so this is the "
            "pretrained model; train.py --resume goes on",
            file=sys.stderr,
            flush=True,
        )
    return replace(config, align=replace(config.align, num_steps=0))
