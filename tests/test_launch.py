"""The README's launch command, as torchx would run it."""

import re
import shlex
import socket
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torchx.schedulers
from torch.distributed.run import parse_args
from torchx.components.component_test_base import ComponentTestCase
from torchx.specs import AppDef
from torchx.specs.finder import ModuleComponentsFinder, get_components

from torchx_components import command, dist

ROOT = Path(__file__).resolve().parents[1]
TORCHX = Path(sys.executable).parent / "torchx"
README_COMMAND = "torchx run dist.ddp -j 2x8 sgrec_torchrec/train.py"


def shell_line(app: AppDef) -> list[str]:
    """Words of the line that every node runs, from torchrun on."""
    (role,) = app.roles
    words = shlex.split(role.args[-1])
    return words[words.index("torchrun") :]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def torchx_run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(TORCHX), "run", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )


def dry_run(*words: str) -> str:
    """What ``torchx run --dryrun`` would start, with line breaks taken out."""
    answer = torchx_run("--dryrun", *words)
    assert answer.returncode == 0, answer.stderr
    return re.sub(r"""['"]\s*\n\s*['"]""", "", answer.stdout)


def test_readme_command_starts_2x8_ranks_of_the_script_alone() -> None:
    text = dry_run(*README_COMMAND.split()[2:])
    lines = set(re.findall(r"torchrun [^\]]*train\.py", text))
    assert len(lines) == 2, "the application, and the request of the local scheduler"
    for line in lines:
        words = shlex.split(line)
        assert option(words, "--nnodes") == "2"
        assert option(words, "--nproc_per_node") == "8"
        assert words[-3:] == ["--role", "", "sgrec_torchrec/train.py"]
        assert words.count("sgrec_torchrec/train.py") == 1


def test_readme_names_the_command() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not there")
    assert README_COMMAND in readme.read_text(encoding="utf-8")


def test_torchrun_lines_of_the_documentation_take_options_of_the_script() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    lines = re.findall(r"torchrun [^`\n]*sgrec_torchrec/train\.py", text)
    assert len(lines) > 2
    for line in lines:
        parsed = parse_args([*shlex.split(line)[1:], "--run", "smoke"])
        assert parsed.training_script_args == ["--run", "smoke"]


def test_config_of_the_project_makes_local_cwd_the_scheduler() -> None:
    assert "local_cwd://" in dry_run(*README_COMMAND.split()[2:])


def test_words_after_the_script_are_its_arguments() -> None:
    app = dist.ddp("train.py", "--run", "smoke", "--set", "a.b=c d")
    expected = ["--", "train.py", "--run", "smoke", "--set", "a.b=c d"]
    assert shell_line(app)[-6:] == expected


def test_script_by_option_leaves_all_words_to_it() -> None:
    app = dist.ddp("other.py", "--x", script="train.py")
    assert shell_line(app)[-3:] == ["train.py", "other.py", "--x"]


def test_module_by_option_is_run_as_a_module() -> None:
    app = dist.ddp("--run", "smoke", m="sgrec_torchrec.train")
    expected = ["-m", "--", "sgrec_torchrec.train", "--run", "smoke"]
    assert shell_line(app)[-5:] == expected


@pytest.mark.parametrize("program", [("train.py",), ()])
def test_torchrun_leaves_the_options_of_the_script_alone(
    program: tuple[str, ...],
) -> None:
    module = None if program else "train"
    app = dist.ddp(*program, "--run", "smoke", j="1x1", m=module)
    parsed = parse_args(shell_line(app)[1:])
    assert parsed.training_script == (program[0] if program else "train")
    assert parsed.module == (not program)
    assert parsed.training_script_args == ["--run", "smoke"]


@pytest.mark.parametrize("words", [(), ("--run", "smoke"), ("smoke",)])
def test_missing_script_is_an_error_that_shows_an_example(
    words: tuple[str, ...],
) -> None:
    with pytest.raises(ValueError, match=re.escape(README_COMMAND)):
        dist.ddp(*words)


def test_two_jobs_meet_at_different_ports() -> None:
    apps = [dist.ddp("train.py", j="2x1") for _ in range(2)]
    ports = {option(shell_line(app), "--rdzv_endpoint").split(":")[-1] for app in apps}
    assert len(ports) == 2
    assert "29500" not in ports
    for app in apps:
        port = app.roles[0].port_map["c10d"]
        assert option(shell_line(app), "--rdzv_endpoint").endswith(f":{port}")


def test_given_port_is_kept() -> None:
    app = dist.ddp("train.py", j="2x1", rdzv_port=29500)
    assert option(shell_line(app), "--rdzv_endpoint").endswith(":29500")


@pytest.mark.parametrize("j", ["1x0", "0x1", "0:0x2", "3:2x1", "0", "2y8", "", "-1x2"])
def test_job_of_no_process_is_told_what_to_give(j: str) -> None:
    with pytest.raises(command.LaunchError, match=f"-j {j}: give NODESxPROCESSES"):
        dist.ddp("train.py", j=j)
    assert [command.processes_a_node(j) for j in ("1:3x2", "4x1", "4")] == [2, 1, 4]


def test_port_must_be_one() -> None:
    with pytest.raises(command.LaunchError, match="rdzv_port = 65536: give 1 to 65535"):
        dist.ddp("train.py", j="2x1", rdzv_port=65_536)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dist.ddp -j 2x0 train.py", "-j 2x0: give NODESxPROCESSES"),
        ("sgrec.train --run nothing", "run = 'nothing': there are"),
        ("sgrec.train --settings log.sed=1", "log.sed"),
        ("sgrec.serve --settings max_k=0 packages/a", "max_k = 0"),
    ],
)
def test_what_is_wrong_is_a_line_and_no_traceback(words: str, message: str) -> None:
    answer = torchx_run(*words.split())
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("replica", "host", "is_refused"),
    [
        (0, "localhost", True),
        (1, "localhost", True),
        (1, "first", False),
        (0, "", True),
    ],
)
def test_nodes_of_the_machine_whose_port_is_taken_end_at_once(
    replica: int, host: str, is_refused: bool
) -> None:
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        line = dist.ddp("train.py", j="2x1", rdzv_port=port).roles[0].args[-1]
        check, found, _ = line.partition("fi; ")
        assert found
        check = string.Template(check + found).safe_substitute(
            replica_id=replica, rank0_env="FIRST"
        )

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["bash", "-c", f"{check} echo goes on"],
                env={"FIRST": host},
                capture_output=True,
                text=True,
                check=False,
            )

        told = run()
        assert (told.returncode == 1) == is_refused
        assert ("goes on" in told.stdout) != is_refused
        if is_refused:
            end = "is in use on this machine: give another one, or 0\n"
            assert told.stderr == f"rdzv_port = {port} {end}"
    assert run().stdout == "goes on\n"


def test_only_a_given_port_of_several_nodes_is_looked_at() -> None:
    for size, port in (("2x1", 0), ("1x2", 29500)):
        assert (
            "/dev/tcp" not in dist.ddp("a.py", j=size, rdzv_port=port).roles[0].args[-1]
        )


@pytest.mark.parametrize(
    ("device", "gpu", "expected"), [("cpu", 0, 0), ("cuda", 0, 8), ("cuda", 4, 4)]
)
def test_gpus_follow_the_processes_only_on_cuda(
    device: str, gpu: int, expected: int
) -> None:
    resource = dist.ddp("train.py", j="2x8", device=device, gpu=gpu).roles[0].resource
    assert resource.gpu == expected
    assert resource.cpu == 8
    assert resource.memMB == 8 * 4096


def test_unknown_device_is_an_error() -> None:
    with pytest.raises(ValueError, match="device = 'tpu': choose cpu or cuda"):
        dist.ddp("train.py", device="tpu")


def test_job_that_fails_is_not_started_again() -> None:
    app = dist.ddp("train.py", j="2x2")
    assert app.roles[0].max_retries == 0
    assert "--max_restarts" not in shell_line(app), "torchrun's own default is 0"
    assert option(shell_line(app), "--tee") == "3", "errors must reach the console"


def test_spmd_takes_the_script_too() -> None:
    app = dist.spmd("train.py", "--run", "smoke", j="2x2", h="gpu.small")
    assert shell_line(app)[-3:] == ["train.py", "--run", "smoke"]
    assert app.roles[0].num_replicas == 2


def test_torchrun_of_this_environment_is_found_without_activating_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    line = dist.ddp("train.py").roles[0].args[-1]
    assert line.startswith(f'PATH={folder}:"$$PATH" torchrun ')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert dist.ddp("train.py").roles[0].args[-1].startswith("torchrun ")


@pytest.mark.parametrize("function_name", ["ddp", "spmd"])
def test_torchx_accepts_the_component(
    function_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = ComponentTestCase()
    case.setUp()
    try:
        case.validate(dist, function_name)
    finally:
        case.tearDown()
    assert "--rdzv_port" in capsys.readouterr().out or function_name == "spmd"


def test_own_components_of_torchx_stay_visible() -> None:
    stock = ModuleComponentsFinder("torchx.components", "").find()
    usable = {component.name for component in stock if not component.validation_errors}
    assert {"dist.ddp", "utils.echo"} <= usable
    assert usable <= set(get_components())
    assert get_components()["dist.ddp"].fn is dist.ddp


def test_all_schedulers_of_torchx_stay_visible() -> None:
    expected = set(torchx.schedulers.DEFAULT_SCHEDULER_MODULES)
    assert set(torchx.schedulers.get_scheduler_factories()) == expected
