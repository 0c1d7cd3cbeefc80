"""Room for what is made of a log and by a judge, asked for before anything is read."""

from pathlib import Path

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.room import bytes_below, check_room
from sgrec_torchrec.files.run_folder import JUDGE_MADE, SPLIT_MADE
from sgrec_torchrec.logs.importers.locate import fingerprint

PACKAGED_JUDGE_BYTES = 550_000_000
"""SmolLM2 in float32, which training merges its adapters into."""


def check_room_for_log(config: RunConfig) -> None:
    """Raise where the imported log and its split would not fit.

    They need about what the files of the log have, each. A packaged log is small.

    Raises:
        OSError: as ``check_room``.
    """
    needed = 2 * _log_bytes(config)
    check_room(Path(config.out_dir), needed, "the imported log and its split")


def check_room_for_pipeline(config: RunConfig, judge: str | None) -> None:
    """The same for all that a pipeline makes but checkpoints, where it is not there.

    Its first step asks for the room for them in seconds, as soon as the log is read.

    Args:
        judge: folder or name of the judge's model; None takes the packaged one.

    Raises:
        OSError: as ``check_room``.
    """
    needed = 0
    if not (config.run_dir / SPLIT_MADE).exists():
        needed += 2 * _log_bytes(config)
    if not (config.run_dir / JUDGE_MADE).exists():
        packaged = PACKAGED_JUDGE_BYTES
        needed += packaged if judge is None else bytes_below([Path(judge)])
    what = "the imported log, its split and the trained judge (--business-only)"
    check_room(Path(config.out_dir), needed, what)


def _log_bytes(config: RunConfig) -> int:
    return sum(size for _, size, _ in fingerprint(config.log.source, config.log.path))
