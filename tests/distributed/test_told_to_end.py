"""One rank is told to end: all keep the same step, and end in order."""

import re
from pathlib import Path

import pytest

from sgrec_torchrec.distributed.checkpoint import latest_checkpoint, read_extra


@pytest.mark.parametrize(
    ("where", "earliest", "latest"), [("train", 31, 35), ("validate", 26, 26)]
)
def test_sigterm_of_one_rank_keeps_one_step_of_all(
    run_ranks,
    prepared_runs: Path,
    planted_log,
    tiny_arguments,
    where: str,
    earliest: int,
    latest: int,
) -> None:
    # Two batches of valid rows and more: the word is heard between them.
    few = "evaluation.batch_size=16"
    argv = tiny_arguments(planted_log(), prepared_runs, few, name="told")
    done = run_ranks("told_to_end.py", 2, where, *argv)
    assert done.exit_codes == [143, 143], "\n".join(done.outputs)
    kept = latest_checkpoint(prepared_runs / "told" / "checkpoints")
    assert kept is not None
    state = read_extra(kept)
    step = state["step"]
    assert earliest <= step <= latest
    assert state["is_unvalidated"] == (where == "validate")
    said = [re.findall("the state after step (.*) is kept", t) for t in done.outputs]
    assert said == [[str(step)], []]
    assert not any("Traceback" in text for text in done.outputs)
