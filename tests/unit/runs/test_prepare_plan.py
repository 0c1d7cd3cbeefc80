"""``sgrec prepare --plan`` says what preparing would take, and makes nothing."""

import re
import shlex
from pathlib import Path

import pytest

from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.run_folder import CANONICAL, COVISITS, PREPARED, TEXTS
from sgrec_torchrec.runs.plan_costs import MEASURED
from sgrec_torchrec.runs.plan_size import log_size
from sgrec_torchrec.runs.prepare_command import main
from sgrec_torchrec.runs.prepare_plan import Stage, stages

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "plan-preparing.md"
LARGE = ["--plan", "--events", "1e9", "--items", "1e8", "--cores", "16"]
MOST = {
    "import": 1.01,
    "split": 2.2,
    "pairs": 6.0,
    "graph": 1.25,
    "texts": 99.0,
    "evidence": 1.1,
    "teacher": 1.4,
    "tokens": 2.0,
}
"""Stage -> planned bytes over those on disk, at most; 0.8 at least."""


def told(words: list[str], capsys) -> str:
    main(words)
    return capsys.readouterr().out


def row(said: str, stage: str) -> list[str]:
    """The cells of a stage."""
    (line,) = (one for one in said.splitlines() if one.startswith(f"  {stage} "))
    return re.split(r" {2,}", line.strip())


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_sizes_alone_are_enough(capsys):
    said = told(LARGE, capsys)
    assert said.startswith("1,000,000,000 events, 50,000,000 users, 100,000,000 items")
    # 1e9 / 2^22 shards; 2 x 20 x 1e9 / 2e7 ranges.
    assert row(said, "pairs")[1] == "239 + 2,000"
    # 7.2 s at 3.83e6 events: 1,880 s, on one core of one machine.
    assert row(said, "split")[4:] == ["0.522", "31.3 min", "31.3 min", "31.3 min"]
    # 3 s at 0.958e6: 3,132 s on 16, 239 and 239 cores; fewer shards than cores.
    assert row(said, "pairs")[4:] == ["0.87", "3.26 min", "13.1 s", "13.1 s"]
    assert "not measured by these settings: tokens" in said


def test_what_one_process_makes_bounds_the_wall_time(capsys):
    said = told(LARGE, capsys)
    shared = ("pairs", "evidence", "teacher", "tokens")
    alone = [row(said, name)[4] for name in MEASURED if name not in shared]
    hours = sum(map(float, alone))
    (least,) = re.findall(r"takes ([\d.]+) h at least", said)
    assert float(least) == pytest.approx(hours, abs=0.05)


def test_rows_are_shared_out_in_blocks_of_a_few_thousand(capsys):
    said = told(LARGE, capsys)
    # 5 folds, and the relations of all beside; 20,000 and 100,000 rows by 2,048.
    assert row(said, "evidence")[1] == "6 + 10"
    assert row(said, "teacher")[1] == "5 + 49"
    # 178.5 s, 90 of them for 100,000 rows that do not grow; on 5 cores at most.
    assert row(said, "teacher")[4:] == ["25.7", "5.14 h", "5.14 h", "5.14 h"]
    assert "relations without each fold take up to 104 GB" in " ".join(said.split())


def test_tokens_of_given_vectors_were_measured(capsys):
    said = told([*LARGE, "--set", "tokens.source=embedding"], capsys)
    # 15.4 s at 1e5 items and 256 codes; 1e8 items have 1,024: 61,600 s.
    assert row(said, "tokens")[4:6] == ["17.1", "17.1 h"]
    assert "not measured by these settings" not in said


def test_no_teacher_is_no_row(capsys):
    said = told([*LARGE, "--set", "pretrain.teacher_weight=0"], capsys)
    assert "\n  teacher " not in said


def test_a_log_is_counted_by_its_import_and_nothing_is_written(
    planted_log, tiny_arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    log = planted_log(3)
    before = everything(log) | everything(tmp_path)
    words = tiny_arguments(log, tmp_path / "runs")
    said = told([*words, "--plan"], capsys)
    assert re.match(r"\d\d events, 3 users, \d\d items: as counted by the import", said)
    assert everything(log) | everything(tmp_path) == before


def test_a_raw_log_is_estimated_by_its_bytes(tmp_path, capsys):
    (tmp_path / "user_sequence.txt").write_bytes(b"x" * 3_086_629)
    (tmp_path / "item_text.txt").write_bytes(b"x" * 3_086_629)
    words = ["--set", "log.source=sequences", "--set", f"log.path={tmp_path}"]
    said = told([*words, "--plan"], capsys)
    assert said.startswith("397,004 events, 44,726 users, 24,202 items: ESTIMATED")


def test_a_raw_log_of_unknown_size_asks_for_it(tmp_path, capsys):
    words = ["--set", "log.source=minionerec", "--set", f"log.path={tmp_path}"]
    assert "give --events and --items" in refused([*words, "--plan"], capsys)


@pytest.mark.parametrize("word", ["0", "-1", "many", "1.5", "nan", "inf", "2e13"])
@pytest.mark.parametrize("option", ["--events", "--items", "--users"])
def test_wrong_sizes_are_refused(option, word, capsys):
    sizes = {"--events": "1e6", "--items": "1e5", "--users": "1e4", option: word}
    words = [part for pair in sizes.items() for part in pair]
    line = refused(["--plan", *words], capsys)
    assert line.startswith(f"sgrec prepare: {option} {word}: write a whole number")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--plan", "--events", "9"], "needs both --events and --items"),
        (["--plan", "--users", "9"], "needs both --events and --items"),
        (
            ["--plan", "--events", "9", "--items", "9", "--users", "10"],
            "--users 10: more than --events 9",
        ),
        (["--plan", "--events", "1e9", "--items", "1e9"], "lower graph.max_distance"),
        (["--events", "9", "--items", "9"], "--events is of a plan: add --plan"),
        (["--cores", "9"], "--cores is of a plan: add --plan"),
    ],
)
def test_words_that_make_no_plan_are_refused(words, complaint, capsys):
    assert complaint in refused(words, capsys)


def test_no_task_is_shared_by_two_cores():
    pairs = Stage(name="pairs", disk=0, memory_gib=1, cpu_s=60, tasks=(30, 4))
    assert [pairs.wall_s(cores) for cores in (1, 3, 128)] == [60, 20, 15]


@pytest.fixture
def planned_and_made(finished_run) -> dict[str, tuple[float, int]]:
    """Stage -> planned bytes, and those of its data on disk."""
    config = RunConfig.read(finished_run / "config.json")
    size = log_size(config)
    assert size.users == 200
    prepared = finished_run.with_name(PREPARED)
    (counts,), (texts,) = (prepared.glob(f"{name}-*") for name in (COVISITS, TEXTS))
    folders = {"import": finished_run / CANONICAL, "pairs": counts, "texts": texts}
    return {
        stage.name: (
            stage.disk,
            data_bytes(folders.get(stage.name, finished_run / stage.name)),
        )
        for stage in stages(config, size)
    }


def data_bytes(folder: Path) -> int:
    """Of all files but reports and manifests, which no plan counts."""
    files = [path for path in folder.resolve().rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix not in (".json", ".png")]
    return sum(path.stat().st_size for path in kept)


@pytest.mark.parametrize("stage", MOST)
def test_planned_bytes_are_those_on_disk(planned_and_made, stage):
    """Of pairs, graph and evidence they are a bound; equal pairs are kept once."""
    planned, made = planned_and_made[stage]
    assert 0.8 <= planned / made <= MOST[stage], (planned, made)


def test_the_page_shows_what_the_command_prints(capsys):
    page = PAGE.read_text(encoding="utf-8")
    shown = re.findall(
        r"```sh\nsgrec prepare ([^`]+)\n```\n\n```text\n([^`]+)```", page
    )
    assert shown
    for command, output in shown:
        said = told(shlex.split(command), capsys)
        assert [line.rstrip() for line in said.splitlines()] == output.splitlines()
