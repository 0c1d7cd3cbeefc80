"""Wall time of each stage of a run."""

import time
from collections.abc import Callable
from typing import TypeVar

from sgrec_torchrec.distributed.launch import main_rank_first

Made = TypeVar("Made")


class Stopwatch:
    """Runs stages and notes how long each took: ``seconds[stage]``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def main_first(self, stage: str, prepare: Callable[[], Made]) -> Made:
        """A preparation: the main rank makes it, then the others load it."""
        return self.together(stage, lambda: main_rank_first(prepare))

    def together(self, stage: str, run_stage: Callable[[], Made]) -> Made:
        """A stage in which all ranks work together."""
        began_s = time.perf_counter()
        made = run_stage()
        self.seconds[stage] = round(time.perf_counter() - began_s, 1)
        return made
