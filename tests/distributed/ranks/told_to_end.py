"""train.py, one rank of which is told to end: on its 31st step, or as it validates.

Arguments: train or validate, and the command line of train.py.
"""

import os
import signal
import sys
from typing import Any

from sgrec_torchrec.evaluation.generate import Ranker
from sgrec_torchrec.generator import pretrain as loop
from sgrec_torchrec.schema import StepOutput
from sgrec_torchrec.train import main

add, search = loop._Window.add, Ranker._search


def add_and_be_told(
    window: loop._Window, output: StepOutput, learning_rate: float
) -> None:
    add(window, output, learning_rate)
    if os.environ["RANK"] == "1" and window.first_step + len(window) == 31:
        os.kill(os.getpid(), signal.SIGTERM)


def search_and_be_told(ranker: Ranker, *rest: Any) -> Any:
    if os.environ["RANK"] == "1":
        Ranker._search = search  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGTERM)
    return search(ranker, *rest)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        loop._Window.add = add_and_be_told  # type: ignore[method-assign]
    else:
        Ranker._search = search_and_be_told  # type: ignore[method-assign]
    main(sys.argv[2:])
