"""What a finished step made, kept while the step is done anew: it goes once that is.

    RUN/steps/NAME.kept/stamp.json    what the step was done with
    RUN/steps/NAME.kept/0, 1, ...     its folders, in the order that the step names them

Where the new attempt fails, or other settings are given after a kill, all is put back.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sgrec_torchrec.files.atomic import atomic_file

STAMP = "stamp.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Of one step. Each method can be killed at any moment, and called again."""

    folders: Sequence[Path]
    """What the step begins anew without."""
    stamp: Path
    """Of the step; lies beside what is kept."""

    @property
    def place(self) -> Path:
        """Is there while something is kept."""
        return self.stamp.with_suffix(".kept")

    @property
    def kept_stamp(self) -> Path:
        """What the step was done with."""
        return self.place / STAMP

    def put_away(self) -> None:
        """Move the folders out of the way."""
        self.place.mkdir()
        shutil.copy(self.stamp, self.kept_stamp)
        for number, folder in enumerate(self.folders):
            if folder.exists():
                folder.rename(self.place / str(number))

    def put_back(self) -> None:
        """In the place of what the new attempt has left."""
        if self.kept_stamp.is_file():
            # First: who is killed below puts the rest back at the next call.
            with atomic_file(self.stamp) as temporary:
                shutil.copy(self.kept_stamp, temporary)
        for number, folder in enumerate(self.folders):
            kept = self.place / str(number)
            if kept.exists():
                shutil.rmtree(folder, ignore_errors=True)
                kept.rename(folder)
        self.drop()

    def drop(self) -> None:
        """Nothing needs them any more."""
        shutil.rmtree(self.place, ignore_errors=True)
