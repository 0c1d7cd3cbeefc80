"""A run's folder -> the same under another name, where a new run takes its place."""

import dataclasses

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.atomic import set_aside
from sgrec_torchrec.files.run_folder import BEST, CHECKPOINTS, CONFIG
from sgrec_torchrec.runs.steps import alone


def set_aside_run(config: RunConfig) -> None:
    """Move a run's folder, where there is one, to NAME.1 (or .2, ...), and say so.

    It goes on to be a run of that name: its config.json is told.

    Raises:
        BlockingIOError: where a pipeline is at work on it.
    """
    run_dir = config.run_dir
    if not any((run_dir / name).exists() for name in (CONFIG, BEST, CHECKPOINTS)):
        return
    with alone(run_dir):
        place = set_aside(run_dir)
    print(f"{run_dir} is now {place}", flush=True)
    path = place / CONFIG
    if path.is_file():
        try:
            settings = RunConfig.read(path)
        except ValueError as error:
            # A new run takes its place all the same.
            print(f"it keeps its settings as they are: {error}", flush=True)
            return
        name = place.relative_to(config.out_dir).as_posix()
        dataclasses.replace(settings, name=name).write(path)
