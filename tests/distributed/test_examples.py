"""What examples/ shows works as it stands."""

import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAX_LINES = 60


def test_a_model_that_is_not_ours_is_post_trained(run_ranks) -> None:
    script = EXAMPLES / "plug_into_torchrec" / "align_my_model.py"
    done = run_ranks(str(script), 2)
    assert done.exit_codes == [0, 0], "\n".join(done.outputs)
    found = [float(one) for one in re.findall(r"HR@10 (\d\.\d+)", done.outputs[0])]
    assert len(found) == 4
    assert found[-1] > 0.5 > found[0]


def test_plugging_in_takes_few_lines() -> None:
    script = EXAMPLES / "plug_into_torchrec" / "align_my_model.py"
    body = script.read_text().partition("def main()")[2].partition("if __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) < MAX_LINES
