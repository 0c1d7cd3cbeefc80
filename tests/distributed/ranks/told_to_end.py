"""train.py, one rank of which is told to end while it trains on its 31st step.

Arguments: the command line of train.py.
"""

import os
import signal
import sys

from sgrec_torchrec.generator import pretrain as loop
from sgrec_torchrec.schema import StepOutput
from sgrec_torchrec.train import main

add = loop._Window.add


def add_and_be_told(
    window: loop._Window, output: StepOutput, learning_rate: float
) -> None:
    add(window, output, learning_rate)
    if os.environ["RANK"] == "1" and window.first_step + len(window) == 31:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    loop._Window.add = add_and_be_told  # type: ignore[method-assign]
    main(sys.argv[1:])
