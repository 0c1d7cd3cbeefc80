"""One rank is told to end: all keep the same step, and end in order."""

import re
from pathlib import Path

from sgrec_torchrec.distributed.checkpoint import latest_checkpoint, read_extra


def test_sigterm_of_one_rank_keeps_one_step_of_all(
    run_ranks, prepared_runs: Path, planted_log, tiny_arguments
) -> None:
    argv = tiny_arguments(planted_log(), prepared_runs, name="told")
    done = run_ranks("told_to_end.py", 2, *argv)
    assert done.exit_codes == [143, 143], "\n".join(done.outputs)
    kept = latest_checkpoint(prepared_runs / "told" / "checkpoints")
    assert kept is not None
    step = read_extra(kept)["step"]
    assert 31 <= step <= 35
    said = [re.findall("the state after step (.*) is kept", t) for t in done.outputs]
    assert said == [[str(step)], []]
    assert not any("Traceback" in text for text in done.outputs)
