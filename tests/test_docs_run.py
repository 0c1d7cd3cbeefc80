"""The commands of README and docs/, run over a small log: see ``documented_world``.

A command of a page that is not in ``documented/commands.toml`` fails
``test_every_command_is_in_one_list``.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documented_lines import PAGES, ROOT, command_of, commands, name_of, python_blocks
from documented_world import (
    OTHER_MODEL,
    SMALLER,
    World,
    bring_the_rest,
    write_files,
)
from torchx.cli.argparse_util import ArgOnceAction, torchxconfig_run
from torchx.cli.main import main as torchx

LAUNCH = ROOT / "docs" / "launch.md"
"""``test_jobs`` dry-runs its commands, and knows them from the page itself."""
LISTS = tomllib.loads((ROOT / "tests/documented/commands.toml").read_text())
FIRST: dict[str, list[str]] = LISTS.pop("first")
OTHER: dict[str, str] = LISTS.pop("other")
NOT_RUN: dict[str, str] = LISTS.pop("not-run")


def dry_runs() -> list[str]:
    """All torchx commands, but for those of launch.md."""
    pages = [page for page in PAGES if page != LAUNCH]
    return [one for one in commands(*pages) if one.startswith("torchx ")]


def listed() -> list[str]:
    """Every command of a list, as often as it is listed."""
    known = [command for part in LISTS.values() for command in part]
    known += [*dry_runs(), *OTHER.values(), *NOT_RUN]
    return [command_of(one) for one in known]


def test_every_command_is_in_one_list() -> None:
    known = listed()
    assert len(known) == len(set(known)), "a command stands in two lists"
    documented = set(commands(*(page for page in PAGES if page != LAUNCH)))
    new = documented - set(known)
    assert new == set(), "give each of these a place in a list of commands.toml"
    assert set(known) - documented == set(), "no page has these any more"
    assert all(one.startswith("torchx run ") for one in commands(LAUNCH))


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What each command of the story printed."""
    return {}


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_arguments: Callable[..., list[str]],
    tiny_folder: Path,
    alone: Callable[[], Any],
    told: dict[str, str],
) -> World:
    """The folder after the story. Do not change it: ``copied`` is for that."""
    folder = tmp_path_factory.mktemp("world")
    write_files(folder)
    shutil.copytree(tiny_folder, folder / OTHER_MODEL)
    small = tiny_arguments(Path("data/movielens"), Path("runs"))[4:]
    for one in SMALLER:
        small += ["--set", one]
    made = World(folder, tuple(small), tiny_folder, alone)
    first, *others = LISTS["story"]
    told[first] = made.run(first)
    for name in ("movielens", "huge"):
        shutil.copytree(folder / "data" / "mine", folder / "data" / name)
    made.run("sgrec train --run movielens")
    for command in others:
        told[command] = made.run(command)
    bring_the_rest(made)
    return made


@pytest.fixture
def copied(world: World, tmp_path: Path) -> World:
    """A folder of one's own."""
    shutil.copytree(world.folder, tmp_path / "world", symlinks=True)
    return world.at(tmp_path / "world")


def run_and_look(world: World, command: str, expected: str) -> None:
    """Run it; look for a new file, or for words that it prints."""
    for one in FIRST.get(command, ()):
        world.run(one)
    path = world.folder / expected
    before = path.stat().st_mtime_ns if path.is_file() else 0
    said = world.run(command)
    if path.suffix in (".json", ".parquet", ".html"):
        assert path.is_file(), said
        assert path.stat().st_mtime_ns > before, f"{expected} is as it was\n{said}"
    else:
        assert expected in said


@pytest.mark.parametrize("command", LISTS["story"])
def test_command_of_the_story(command: str, world: World, told: dict[str, str]) -> None:
    assert command in told
    assert (world.folder / LISTS["story"][command]).is_file()


@pytest.mark.parametrize("command", LISTS["quick"])
def test_command(command: str, copied: World) -> None:
    run_and_look(copied, command, LISTS["quick"][command])


@pytest.mark.slow
@pytest.mark.parametrize("command", LISTS["slow"])
def test_long_command(command: str, copied: World) -> None:
    run_and_look(copied, command, LISTS["slow"][command])


@pytest.mark.slow
@pytest.mark.parametrize("command", LISTS["ranks"])
def test_command_on_ranks(command: str, copied: World) -> None:
    line = command.replace("--nproc-per-node 8", "--nproc-per-node 2")
    small = " ".join(copied.small)
    line = line.replace("train.py", f"train.py {small}")
    line = line.replace(" examples/", f" {ROOT}/examples/")
    line = line.replace(" sgrec_torchrec/", f" {ROOT}/sgrec_torchrec/")
    assert LISTS["ranks"][command] in copied.shell(line)


@pytest.mark.parametrize("command", dry_runs())
def test_command_of_torchx_as_a_dry_run(
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    for action in (ArgOnceAction, torchxconfig_run):
        # torchx counts options per process.
        monkeypatch.setattr(action, "called_args", set())
    program, run, *words = command.split()
    assert (program, run) == ("torchx", "run")
    torchx(["run", "--dryrun", *(word for word in words if word != "--dryrun")])
    _, request = capsys.readouterr().out.split("=== SCHEDULER REQUEST ===")
    assert "torchrun" in request


@pytest.mark.parametrize("command", LISTS["make"])
def test_target_of_make_as_a_dry_run(command: str) -> None:
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert LISTS["make"][command] in done.stdout


def test_activating_finds_the_command(copied: World) -> None:
    here = Path(sys.executable).parent
    if not (here / "activate").is_file():
        pytest.skip("tests do not run in an environment of venv")
    line = OTHER["activate"].replace(".venv/bin", str(here))
    found = Path(copied.shell(f"{line}; command -v sgrec").strip())
    assert found.resolve() == (here / "sgrec").resolve()


def test_tests_of_a_gpu_are_found(copied: World) -> None:
    line = OTHER["gpu"].replace(".venv/bin/python", sys.executable)
    path = ROOT / "tests" / "unit" / "generator" / "test_attention.py"
    assert "test_the_fused_kernels" in copied.shell(f"{line} --collect-only -q {path}")


@pytest.fixture
def start(copied: World, warm_python: Path) -> Iterator[Callable[..., str]]:
    """start(command, *more) -> address of a server on a port of its own."""
    started = []

    def begin(command: str, *more: str) -> str:
        words = [*command.split()[1:], "--port", "0", "--threads", "1", *more]
        process = subprocess.Popen(
            [str(warm_python), "-m", "sgrec_torchrec.cli", *words],
            cwd=copied.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if '"event": "listening"' in line:
                return f"127.0.0.1:{json.loads(line)['port']}"
        raise RuntimeError("".join(said))

    yield begin
    for process in started:
        process.kill()
        process.wait(60)


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@needs_curl
def test_a_server_answers_the_requests_of_the_pages(
    start: Callable[..., str], copied: World
) -> None:
    # No answer may depend on how busy the machine is.
    address = start(OTHER["serve"], "--set", "latency_ms=3600000")
    for command, expected in LISTS["curl"].items():
        answer = copied.shell(command.replace("127.0.0.1:8000", address))
        assert expected in answer, command


@needs_curl
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_server_for_others_asks_for_the_token(
    start: Callable[..., str], copied: World
) -> None:
    copied.shell(OTHER["token"])
    copied.shell(OTHER["admin-token"])
    ask = f"curl -s http://{start(OTHER['serve-others'])}/items?query=matrix"
    assert "The Matrix" not in copied.shell(ask)
    header = '-H "Authorization: Bearer $(cat token)"'
    assert "The Matrix (1999)" in copied.shell(f"{ask} {header}")


@pytest.mark.slow
@needs_curl
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_a_server_runs_compiled_programs(
    start: Callable[..., str], copied: World
) -> None:
    copied.run(OTHER["export-compiled"])
    more = ("--set", "latency_ms=3600000")
    asked = [name for name in LISTS["curl"] if '"k": 3' in name]
    for name in ("serve", "serve-compiled"):
        line = asked[0].replace("127.0.0.1:8000", start(OTHER[name], *more))
        assert LISTS["curl"][asked[0]] in copied.shell(line)


SNIPPETS = [
    (name_of(page), place)
    for page in PAGES
    for place in range(len(python_blocks(page)))
]


@pytest.mark.parametrize(("name", "place"), SNIPPETS)
def test_snippet_of_python(name: str, place: int, copied: World) -> None:
    snippet = python_blocks(ROOT / name)[place]
    copied.execute(snippet, user_ids=["42", "42"], item_ids=["318", "593"])


def test_setup_of_vllm_is_a_script() -> None:
    subprocess.run(["bash", "-n", str(ROOT / OTHER["vllm-setup"])], check=True)
