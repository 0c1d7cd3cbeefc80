"""The components of the jobs, and the commands of docs/launch.md, as torchx sees it."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from torchx.cli.argparse_util import ArgOnceAction, torchxconfig_run
from torchx.cli.main import main as torchx
from torchx.components.component_test_base import ComponentTestCase
from torchx.specs import AppDef, macros
from torchx.specs.finder import get_components

from sgrec_torchrec.config.arguments import parse_run
from torchx_components import jobs

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("train", "judge", "table", "align", "evaluate", "export", "serve")
SCHEDULERS = ("local_cwd", "slurm", "kubernetes", "aws_batch")
START = {
    "train": "sgrec_torchrec.train --run ",
    "align": "sgrec_torchrec.train --config ",
    "judge": "exec python -m sgrec_torchrec.cli judge run ",
    "table": "exec python -m sgrec_torchrec.cli table build ",
    "evaluate": "sgrec_torchrec.cli evaluate ",
    "export": "exec python -m sgrec_torchrec.cli export ",
    "serve": "exec python -m sgrec_torchrec.cli serve ",
}


def documented() -> list[list[str]]:
    """Words of every command of docs/launch.md."""
    text = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    lines = blocks.replace("\\\n", "").split("\n")
    return [shlex.split(line) for line in lines if line]


def job_and_scheduler(words: list[str]) -> tuple[str, str]:
    (job,) = (word for word in words if word.startswith("sgrec."))
    return job.removeprefix("sgrec."), words[words.index("-s") + 1]


COMMANDS = {
    job_and_scheduler(words): words for words in documented() if "dist.ddp" not in words
}


def line_of(app: AppDef) -> str:
    line: str = app.roles[0].args[-1]
    return line


def parsed_by_train(app: AppDef) -> list[str]:
    """The words that ``train.py`` gets."""
    words = shlex.split(line_of(app))
    return words[words.index("sgrec_torchrec.train") + 1 :]


def test_every_job_is_documented_for_every_scheduler() -> None:
    assert set(COMMANDS) == {(job, one) for job in JOBS for one in SCHEDULERS}
    assert len(documented()) == len(COMMANDS) + 1, "a command stands there twice"


def test_components_are_the_jobs_and_nothing_else() -> None:
    found = {name for name in get_components() if name.startswith("sgrec.")}
    assert found == {f"sgrec.{job}" for job in JOBS}, "pip install -e . registers them"


@pytest.mark.parametrize("job", JOBS)
def test_torchx_accepts_the_component(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = ComponentTestCase()
    case.setUp()
    try:
        case.validate(jobs, job)
    finally:
        case.tearDown()
    shown = capsys.readouterr().out
    assert "--max_retries" in shown
    # What torchx says of an argument without a line in the docstring.
    assert " (default" in shown
    assert not re.search(r"--\w+ \w+\s+ \(", shown)


@pytest.mark.parametrize(("job", "scheduler"), COMMANDS)
def test_documented_command_is_what_the_scheduler_gets(
    job: str,
    scheduler: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if scheduler == "kubernetes" and importlib.util.find_spec("kubernetes") is None:
        pytest.skip(
            "kubernetes is not installed: pip install 'sgrec_torchrec[kubernetes]'"
        )
    monkeypatch.chdir(ROOT)
    for action in (ArgOnceAction, torchxconfig_run):
        # torchx counts options per process.
        monkeypatch.setattr(action, "called_args", set())
    program, run, *words = COMMANDS[job, scheduler]
    assert (program, run) == ("torchx", "run")
    torchx(["run", "--dryrun", *words])
    _, request = capsys.readouterr().out.split("=== SCHEDULER REQUEST ===")
    # Printers break long lines, at blanks or between quotes.
    flat = " ".join(re.sub(r"['\"]\s*\n\s*['\"]", "", request).split())
    assert START[job] in flat
    if scheduler in ("kubernetes", "aws_batch"):
        assert "registry.example/sgrec:0.1" in flat
        assert "/data" in flat
    if scheduler == "kubernetes" and job == "serve":
        assert "containerPort: 8000 name: http" in flat


def test_train_reads_its_settings_from_one_option() -> None:
    app = jobs.train(
        "--name", "first", run="smoke", settings={"log.seed": "3", "out_dir": "a b"}
    )
    config, args = parse_run(parsed_by_train(app))
    assert (config.name, config.log.seed, config.out_dir) == ("first", 3, "a b")
    assert args.resume, "a retry goes on"


def test_align_keeps_the_run_and_sets_steps_and_table() -> None:
    app = jobs.align("runs/x", table="runs/x/t", num_steps=7, settings={"name": "y"})
    words = parsed_by_train(app)
    assert words[:2] == ["--config", "runs/x/config.json"]
    assert words[-1] == "--resume"
    assigned = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    assert assigned == ["align.num_steps=7", "align.table=runs/x/t", "name=y"]


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", (8, 0, 32768)), ("cuda", (8, 8, 32768))]
)
@pytest.mark.parametrize("job", [jobs.train, jobs.align, jobs.evaluate])
def test_parallel_job_asks_for_what_its_processes_take(
    job: Callable[..., AppDef], device: str, expected: tuple[int, int, int]
) -> None:
    words = [] if job is jobs.train else ["runs/x"]
    (role,) = job(*words, j="2x8", device=device).roles
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == expected
    assert role.num_replicas == 2
    assert role.name == job.__name__


def test_judge_asks_for_one_gpu_only_where_told() -> None:
    gpus = [
        jobs.judge("run", "runs/x", device=device).roles[0].resource.gpu
        for device in ("cpu", "cuda")
    ]
    assert gpus == [0, 1]


def test_only_jobs_that_can_begin_again_are_started_again() -> None:
    apps = {
        "train": jobs.train(),
        "judge": jobs.judge("run", "a"),
        "table": jobs.table("append", "a", "b"),
        "align": jobs.align("a"),
        "evaluate": jobs.evaluate("a"),
        "export": jobs.export("a", "--out", "b"),
        "serve": jobs.serve("a"),
    }
    assert {name: app.roles[0].max_retries for name, app in apps.items()} == {
        "train": 3,
        "judge": 3,
        "table": 0,
        "align": 3,
        "evaluate": 1,
        "export": 1,
        "serve": 10,
    }


def test_serve_exposes_the_port_it_listens_on() -> None:
    app = jobs.serve("p", "--log-level", "debug", port=9000, settings={"max_k": "5"})
    assert app.roles[0].port_map == {"http": 9000}
    assert line_of(app).endswith(
        "serve p --host 127.0.0.1 --port 9000 --threads 2 --set max_k=5 "
        "--log-level debug"
    )


def test_words_reach_the_program_as_they_were_given() -> None:
    given = ["export", "runs/a b", "--out", "${app_id}$HOME/x'y"]
    (role,) = jobs.export(*given[1:]).roles
    values = macros.Values(
        img_root="", app_id="export-1", replica_id="0", rank0_env="R"
    )
    assert shlex.split(values.apply(role).args[-1])[-4:] == given


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jobs.train(run="nosuch"), "run = 'nosuch': there are .*smoke"),
        (lambda: jobs.train(settings={"log.sed": "1"}), "no field 'sed'"),
        (lambda: jobs.train(max_retries=11), "max_retries = 11: give 0 to 10"),
        (lambda: jobs.judge("page", "a"), "one of label, train, run, found 'page'"),
        (lambda: jobs.judge(), "one of label, train, run, found nothing"),
        (lambda: jobs.judge("run", "--bf16"), "expected a path, found '--bf16'"),
        (
            lambda: jobs.table("build"),
            "expected a path, found nothing; example: torchx",
        ),
        (lambda: jobs.align(), r"sgrec\.align: expected a path, found nothing"),
        (lambda: jobs.align("a", max_retries=11), "max_retries = 11"),
        (lambda: jobs.evaluate("a", max_retries=11), "max_retries = 11"),
        (lambda: jobs.evaluate(), r"sgrec\.evaluate: expected a path, found nothing"),
        (lambda: jobs.align("a", num_steps=0), "num_steps = 0: give 1 or more"),
        (lambda: jobs.export(), r"sgrec\.export: expected a path, found nothing"),
        (lambda: jobs.export("a"), "--out is missing"),
        (lambda: jobs.export("a", "--out", "b", max_retries=-1), "max_retries = -1"),
        (lambda: jobs.serve(), r"sgrec\.serve: expected a path, found nothing"),
        (lambda: jobs.serve("a", port=0), "port = 0: name the port"),
        (lambda: jobs.serve("a", port=70000), "port = 70000 is outside"),
        (lambda: jobs.serve("a", threads=0), "threads = 0: give 1 or more"),
        (lambda: jobs.serve("a", settings={"k": "1"}), "--set k: no such field"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_submitted(
    call: Callable[[], AppDef], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
