"""Named values of a step -> a line of ``metrics.jsonl`` and tensorboard scalars.

A line is ``{"step", "stage", "time_s", "values": {name: float or null}}``. A value that
is not finite is null there and spelled out under ``"not_finite"``: the line stays
valid JSON, and a diverged run shows where it diverged.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.files.full_disk import naming_a_full_disk
from sgrec_torchrec.files.run_folder import METRICS, TENSORBOARD

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLine:
    """What one call of ``Tracker.log`` wrote."""

    step: int
    stage: str
    time_s: float
    """Seconds since 1970 at which it was written."""
    values: dict[str, float]
    """Values as logged, NaN and infinities included."""


class Tracker:
    """Appends what a run measures to files in its folder; a context manager.

    Only one process may write: give ``enabled`` on the main rank alone; elsewhere every
    call does nothing. Ranks do not communicate. ``metrics.jsonl`` grows by one line a
    call; each line reaches the operating system before ``log`` returns.
    """

    def __init__(self, run_dir: Path, enabled: bool) -> None:
        self.enabled = enabled
        self._path = run_dir / METRICS
        self._tensorboard_dir = run_dir / TENSORBOARD
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None
        self._has_tried_writer = False
        self._next_step: int | None = None

    def __enter__(self) -> "Tracker":
        """Open ``metrics.jsonl`` to append; a line cut off by a crash is removed.

        Raises:
            FileNotFoundError: naming the folder, where it cannot be made.
        """
        if self.enabled:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FileNotFoundError(
                    f"cannot write {self._path}: {error.strerror}; choose another "
                    "output folder"
                ) from error
            _cut_unfinished_line(self._path)
            self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close both files; an error passes through."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def resume(self, next_step: int) -> None:
        """Drop what was logged at ``next_step`` or later, so that no curve doubles.

        Call it once before training, with the step that will be logged next: 0 starts
        afresh. What belongs to the state after step s (a validation) must therefore be
        logged with step s, not s + 1, to outlive a resume from that state.

        Raises:
            ValueError: naming the first line that is not one of ours.
        """
        if not self.enabled:
            return
        assert self._file is not None, "use the tracker in a with statement"
        self._file.close()
        with (
            atomic_file(self._path) as temporary,
            temporary.open("w", encoding="utf-8") as kept,
        ):
            for text, line in _lines(self._path):
                if line.step < next_step:
                    kept.write(text)
        self._open()
        self._next_step = next_step

    def log(self, step: int, values: Mapping[str, float], stage: str) -> None:
        """Write the values of one step of one stage.

        Args:
            step: count of optimizer steps before this one, from 0.
            values: any finite or not finite numbers; tensors of one element are read,
                which waits for their device.
            stage: e.g. "pretrain" or "valid"; tensorboard shows "stage/name".

        Raises:
            ValueError: for a negative step.
            NoSpaceError: where the disk is full.
        """
        if not self.enabled:
            return
        if step < 0:
            raise ValueError(f"step = {step} of stage {stage!r}: steps count from 0")
        assert self._file is not None, "use the tracker in a with statement"
        numbers = {name: float(value) for name, value in values.items()}
        record: dict[str, object] = {
            "step": step,
            "stage": stage,
            "time_s": round(time.time(), 3),
            "values": {k: v if math.isfinite(v) else None for k, v in numbers.items()},
        }
        strange = {k: str(v) for k, v in numbers.items() if not math.isfinite(v)}
        if strange:
            record["not_finite"] = strange
        with naming_a_full_disk(self._path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            writer = self._tensorboard()
            if writer is not None:
                for name, number in numbers.items():
                    writer.add_scalar(f"{stage}/{name}", number, global_step=step)

    def _open(self) -> None:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def _tensorboard(self) -> "SummaryWriter | None":
        """Made at the first value, since only then the resumed step is known."""
        if not self._has_tried_writer:
            self._has_tried_writer = True
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                logging.getLogger(__name__).warning(
                    "tensorboard is not installed: values go to %s only", self._path
                )
            else:
                self._writer = SummaryWriter(
                    log_dir=str(self._tensorboard_dir),
                    purge_step=self._next_step,
                )
        return self._writer


def read_metrics(path: Path) -> list[MetricLine]:
    """All lines in the order they were written; memory grows with their number.

    A last line without its end (a run killed while writing, or still writing) is left
    out.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: naming the first line that is not one of ours.
    """
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, MetricLine]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if text.endswith("\n"):
                yield text, _parse(text, f"{path}, line {number}")


def _parse(text: str, place: str) -> MetricLine:
    try:
        record = json.loads(text)
        values = {**record["values"], **record.get("not_finite", {})}
        return MetricLine(
            step=int(record["step"]),
            stage=str(record["stage"]),
            time_s=float(record["time_s"]),
            values={name: float(value) for name, value in values.items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{place}: not a line of metrics ({type(error).__name__}: {error}); "
            "remove the line, or move the file away to start a new one"
        ) from error


def _cut_unfinished_line(path: Path) -> None:
    """Shorten the file to end with its last line break; reads the tail alone."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - TAIL_BYTES)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                file.truncate(start + cut + 1)
                return
            end = start
        file.truncate(0)
