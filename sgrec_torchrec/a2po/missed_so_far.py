"""What a rank missed so far <-> a file for each kept state: who goes on counts on.

    aligned/missed/step-000000000005-00000.parquet    of rank 0, at the state of step 5

What ranks left that a later call does not have is taken over by one that it has.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgrec_torchrec.files.run_folder import CHECKPOINTS, MISSED, MISSES, STEP, nth
from sgrec_torchrec.reward_table import MissLog

NAME = re.compile(r"step-(\d{12})-(\d{5})\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedSoFar:
    """One rank's log of misses, and its files. No communication."""

    log: MissLog
    folder: Path
    """All that post-training writes."""
    rank: int
    world_size: int

    def keep(self, step: int) -> None:
        """Save the log, before the state of the step is kept.

        Files of states that are gone go, too.
        """
        states = (self.folder / CHECKPOINTS).glob(STEP)
        steps = [int(state.name.rpartition("-")[2]) for state in states]
        oldest = min(steps, default=step)
        for path, at in self._mine():
            if at < oldest:
                path.unlink(missing_ok=True)
        name = f"step-{step:012d}-{self.rank:05d}.parquet"
        self.log.save(self.folder / MISSED / name)

    def go_on(self, step: int) -> None:
        """Count on from the state of the step; what was saved later is forgotten.

        An older version saved none: its misses before the step are lost.

        Raises:
            ValueError: naming a file that cannot be read.
        """
        for path, at in self._mine():
            if at == step:
                self.log.load(path)
            elif at > step:
                path.unlink(missing_ok=True)

    def write(self) -> None:
        """All of the run, as the judge takes it; nothing where nothing was missed."""
        if not len(self.log):
            return
        self.log.write(self.folder / nth(MISSES, self.rank))
        # Theirs are among ours since ``go_on``.
        for path in self.folder.glob(MISSES):
            number = path.stem.rpartition("-")[2]
            is_ours = number.isdigit() and int(number) % self.world_size == self.rank
            if is_ours and int(number) != self.rank:
                path.unlink(missing_ok=True)

    def _mine(self) -> Iterator[tuple[Path, int]]:
        """Files of this rank, and of those that it stands for; with their steps."""
        for path in sorted((self.folder / MISSED).glob("*.parquet")):
            found = NAME.fullmatch(path.name)
            if found and int(found[2]) % self.world_size == self.rank:
                yield path, int(found[1])
