"""Would a pipeline go on with a model of other settings? Asked before it begins."""

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.content_key import content_key
from sgrec_torchrec.files.run_folder import BEST, BEST_WEIGHTS
from sgrec_torchrec.runs.steps import Step, read_stamp, stamp_path


def check_same_model(config: RunConfig, step: Step) -> None:
    """Refuse by the settings that the pretrained model was made of.

    Another log is found by the step itself, which reads it. Neither removes the model.

    Args:
        step: that pretrains.

    Raises:
        ValueError: naming the setting, and the ways on.
    """
    run_dir = config.run_dir
    stamp = read_stamp(stamp_path(run_dir, step.name))
    if stamp is None or stamp.settings == content_key(step.settings):
        return
    if not any(run_dir.glob(BEST_WEIGHTS)):
        return
    # Here, for it takes seconds: most calls end above.
    from sgrec_torchrec.runs.claim import check_pretrained

    check_pretrained(config, run_dir / BEST)
