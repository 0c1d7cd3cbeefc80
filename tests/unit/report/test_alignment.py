"""Post-training in the report: verdict, before and after, the picture of the fusion."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sgrec_torchrec.files.tracking import MetricLine
from sgrec_torchrec.report.alignment import (
    MAX_POINTS,
    gain_table,
    read_alignment,
    scatter,
    verdict_of,
)
from sgrec_torchrec.report.pictures import alignment_charts
from sgrec_torchrec.report.run_page import write_report

STATE = {
    "step": 60,
    "best_step": 40,
    "best_ndcg": 0.0712,
    "start_ndcg": 0.0672,
    "has_collapsed": False,
}
PART = {
    "metric": "NDCG@10",
    "value_a": 0.06,
    "value_b": 0.0625,
    "difference": 0.0025,
    "low": -0.0011,
    "high": 0.0061,
    "p_value": 0.24,
}


def sample(*rows: tuple[float, float, float]) -> pa.Table:
    names = ("business", "semantic", "lambda")
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


@pytest.fixture
def aligned(run_dir: Path) -> Path:
    """The run of MovieLens, post-trained."""
    folder = run_dir / "aligned"
    best = folder / "best" / "step-000000000040"
    best.mkdir(parents=True)
    (best / "state.json").write_text(json.dumps(STATE))
    gain = {"generator": {"differences": [PART, PART | {"metric": "HR@50"}]}}
    (folder / "gain.json").write_text(json.dumps(gain))
    lines = [
        {"step": 0, "stage": "valid", "values": {"pretrained NDCG@10": 0.0672}},
        {"step": 0, "stage": "align", "values": {"kl_mean": 0.0, "kl_p99": 0.1}},
        {"step": 1, "stage": "align", "values": {"kl_mean": 0.2, "kl_p99": 0.3}},
        {"step": 1, "stage": "valid", "values": {"NDCG@10": 0.0712}},
    ]
    text = "".join(json.dumps({**line, "time_s": 0.0}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    rows = sample((1.0, 0.5, 0.5), (-1.0, 0.5, 0.0))
    pq.write_table(rows, folder / "advantages-00000.parquet")
    config = json.loads((run_dir / "config.json").read_text())
    config["align"]["num_steps"] = 60
    (run_dir / "config.json").write_text(json.dumps(config))
    return run_dir


def test_report_tells_what_post_training_did(aligned: Path) -> None:
    html = write_report(aligned).read_text()
    for words in (
        "The weights after step 40 ship: NDCG@10 on the valid rows 0.0672 before, ",
        "0.0712 after.",
        "Before and after, test rows",
        "generator, NDCG@10",
        "+0.0025",
        "-0.0011 to +0.0061",
        "How advantages were fused",
        "KL to the pretrained policy",
    ):
        assert words in html, words
    assert "HR@50</th>" not in html.split('id="alignment"')[1].split("<section")[0]


def test_run_without_post_training_has_no_such_section(run_dir: Path) -> None:
    assert 'id="alignment"' not in write_report(run_dir).read_text()


def test_older_post_training_is_not_shown_where_the_run_asks_for_none(
    aligned: Path,
) -> None:
    config = json.loads((aligned / "config.json").read_text())
    config["align"]["num_steps"] = 0
    (aligned / "config.json").write_text(json.dumps(config))
    assert 'id="alignment"' not in write_report(aligned).read_text()


def test_without_judgements_the_picture_is_left_out_and_said_so(aligned: Path) -> None:
    (aligned / "aligned" / "advantages-00000.parquet").unlink()
    (aligned / "aligned" / "gain.json").unlink()
    html = write_report(aligned).read_text()
    assert "went by the business reward alone" in html
    assert "before and after were not compared" in html


@pytest.mark.parametrize(
    ("changes", "words", "has_helped"),
    [
        ({"best_step": 0}, "so the pretrained model ships.", False),
        ({"start_ndcg": -1.0}, "after step 60 ship, unvalidated.", True),
        ({"has_collapsed": True}, "because the policy had collapsed", True),
    ],
)
def test_verdict(changes: dict, words: str, has_helped: bool) -> None:
    text, helped = verdict_of(STATE | changes)
    assert words in text
    assert helped is has_helped


def test_difference_without_an_interval_is_shown_alone() -> None:
    gain = {"generator": {"differences": [PART | {"low": None, "high": None}]}}
    (row,) = gain_table(gain).rows
    assert [cell.text for cell in row.cells] == ["0.0600", "0.0625", "+0.0025", "0.240"]
    assert row.cells[2].low == ""


def test_points_lie_where_their_advantages_say_in_the_class_of_their_lambda() -> None:
    made = scatter(
        sample((-1.0, -1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, 0.25), (1.0, 0.0, 0.26))
    )
    assert made is not None
    # From -1 to 1 on both axes; y grows downwards in SVG.
    paths = {cloud.label: cloud.path for cloud in made.clouds if cloud.count}
    assert paths == {
        "0": "M1000 1000h.01",
        "0 to 0.25": "M1000 0h.01",
        "0.25 to 0.5": "M1000 500h.01",
        "0.75 to 1": "M0 1000h.01",
    }
    assert (made.x_zero, made.y_zero) == (50.0, 50.0)
    assert made.agree_percent == 50.0


def test_a_large_sample_is_thinned_and_what_is_not_finite_left_out() -> None:
    rows = [(float(n % 7), float(n % 5), 0.5) for n in range(3 * MAX_POINTS)]
    made = scatter(sample(*rows, (float("nan"), 1.0, 1.0)))
    assert made is not None
    assert made.num_kept == 3 * MAX_POINTS
    assert made.num_shown == MAX_POINTS
    assert sum(cloud.count for cloud in made.clouds) == MAX_POINTS
    assert scatter(sample((float("inf"), 1.0, 1.0))) is None


def test_rewards_that_are_but_rounding_are_not_drawn() -> None:
    def titles(reward: float) -> list[str]:
        values = {"reward": reward, "entropy": 3.0}
        line = MetricLine(step=0, stage="align", time_s=0.0, values=values)
        return [chart.title for chart in alignment_charts([line])]

    assert titles(-1e-10) == ["Entropy of the policy"]
    assert titles(0.25) == ["Business reward", "Entropy of the policy"]


def test_validations_stand_at_the_steps_done_before_them(aligned: Path) -> None:
    made = read_alignment(aligned)
    assert made is not None
    (chart,) = (one for one in made.charts if one.title == "Validation NDCG@10")
    # Steps 0 to 2: both ends of the axis, and nothing beyond.
    assert chart.lines[0].path.startswith("M0.0 ")
    assert "L1000.0 " in chart.lines[0].path
    assert chart.summary == "best 0.0712 at step 2"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gain.json", "{"),
        ("gain.json", '{"generator": {}}'),
        ("best/step-000000000040/state.json", "{}"),
        ("advantages-00000.parquet", "PAR1"),
    ],
)
def test_a_damaged_file_is_named(aligned: Path, name: str, text: str) -> None:
    (aligned / "aligned" / name).write_text(text)
    with pytest.raises(ValueError, match=r"aligned.*cannot be read"):
        write_report(aligned)
