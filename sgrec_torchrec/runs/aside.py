"""A run's folder -> the same under another name, where a new run takes its place."""

import json

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.atomic import set_aside, write_json
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
    path = place / CONFIG
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        name = place.relative_to(config.out_dir).as_posix()
        write_json(path, settings | {"name": name})
    print(f"{run_dir} is now {place}", flush=True)
