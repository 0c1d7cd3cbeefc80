"""A run's links move with its settings: a kill before leaves a folder that answers."""

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from folder_state import folder_state

from sgrec_torchrec import cli
from sgrec_torchrec.config import RunConfig
from sgrec_torchrec.files.atomic import atomic_file
from sgrec_torchrec.runs import open_run, stage_links
from sgrec_torchrec.serving import Recommender

pytestmark = pytest.mark.long

MOVED = ("evidence", "scorer", "teacher")
CHANGE = "evidence.max_rows=400"


class Killed(BaseException):
    """Nothing in the program expects it."""


def kill(*_: object) -> None:
    raise Killed


@pytest.fixture
def run_dir(finished_run: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def again(
    planted_log, tiny_arguments, train_here, run_dir: Path
) -> Callable[..., None]:
    """again(*changes): the run goes on, with changed settings."""
    argv = tiny_arguments(planted_log(), run_dir.parent)

    def call(*changes: str) -> None:
        sets = [word for change in changes for word in ("--set", change)]
        train_here([*argv, *sets, "--resume"])

    return call


@pytest.fixture
def killed_at(
    again: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], None]:
    """killed_at(n): as ``again(CHANGE)`` leaves it, ended at the n-th link's rename.

    After the last link come the settings.
    """

    def call(number: int) -> None:
        seen = []

        @contextmanager
        def renamed(path: Path):
            if len(seen) == number:
                kill()
            seen.append(path.name)
            with atomic_file(path) as temporary:
                yield temporary

        with monkeypatch.context() as patch:
            patch.setattr(stage_links, "atomic_file", renamed)
            patch.setattr(RunConfig, "write", kill)
            with pytest.raises(Killed):
                again(CHANGE)
        assert tuple(seen) == MOVED[:number]

    return call


def links(run_dir: Path) -> dict[str, str]:
    return {
        path.name: str(path.readlink())
        for path in run_dir.glob("*")
        if path.is_symlink()
    }


def test_who_is_killed_before_the_settings_are_written_leaves_the_links(
    run_dir: Path, again: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_state(run_dir)
    monkeypatch.setattr(open_run, "prepare_tokens", kill)
    with pytest.raises(Killed):
        again(CHANGE)
    after = folder_state(run_dir)
    assert {name for name in before if after.get(name) != before[name]} == set()
    Recommender.load(run_dir)


@pytest.mark.parametrize("number", range(len(MOVED) + 1))
def test_between_two_links_a_kill_is_named_and_the_same_call_mends_it(
    run_dir: Path,
    again: Callable[..., None],
    killed_at: Callable[[int], None],
    number: int,
) -> None:
    before = links(run_dir)
    killed_at(number)
    assert RunConfig.read(run_dir / "config.json").evidence.max_rows == 500
    if number == 0:
        Recommender.load(run_dir)
    else:
        with pytest.raises(ValueError, match=r"was not trained on .*give a train\.py"):
            Recommender.load(run_dir)
    again(CHANGE)
    after = links(run_dir)
    assert [name for name in after if after[name] != before[name]] == sorted(
        MOVED, key=list(after).index
    )
    assert RunConfig.read(run_dir / "config.json").evidence.max_rows == 400
    Recommender.load(run_dir)


@pytest.mark.parametrize("mend", ["evaluate", "resume as it was"])
def test_who_has_the_folders_own_settings_moves_the_links_back(
    run_dir: Path,
    again: Callable[..., None],
    killed_at: Callable[[int], None],
    world_of_one: None,
    mend: str,
) -> None:
    before = links(run_dir)
    killed_at(2)
    assert links(run_dir) != before
    if mend == "evaluate":
        cli.evaluate(run_dir)
    else:
        again()
    assert links(run_dir) == before
    Recommender.load(run_dir)


def test_a_folder_that_moved_is_linked_anew_at_once(tmp_path: Path) -> None:
    run_dir, place = tmp_path / "run", tmp_path / "prepared" / "split-2"
    place.mkdir(parents=True)
    run_dir.mkdir()
    (run_dir / "split").symlink_to("../prepared/split-1")
    found = stage_links.StageLinks(run_dir=run_dir)
    found.add("split", place)
    assert (run_dir / "split").resolve() == place
    assert found.name_of("split") == "split-2"
