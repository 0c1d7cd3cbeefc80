"""Rank a few rows with a finished run, then train: what one rank of several does.

Arguments: output .npz (the rank is appended), folder of the finished run, then one or
more command lines of train.py, separated by "--then".
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.config.arguments import parse_run
from sgrec_torchrec.distributed.launch import process_group
from sgrec_torchrec.runs.open_run import open_run
from sgrec_torchrec.train import run

NUM_ROWS = 7


def main() -> None:
    out, finished, *words = sys.argv[1:]
    groups = itertools.groupby(words, lambda word: word == "--then")
    command_lines = [list(group) for is_break, group in groups if not is_break]
    config = RunConfig.read(Path(finished) / "config.json")
    with process_group(device="cpu", timeout_s=240) as ranks:
        ranker = open_run(config, ranks).ranker()
        rows = ranker.split.test.take(np.arange(NUM_ROWS))
        (top,) = ranker.top_items(rows, (0.4,))
        np.savez(
            f"{out}-{ranks.rank}.npz",
            items_EK=top.item_EW,
            score_EK=top.score_EW,
        )
        for argv in command_lines:
            run(parse_run(argv)[0], ranks)


if __name__ == "__main__":
    main()
