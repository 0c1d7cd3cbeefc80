"""One numbering of stages, and docs/explain/architecture.md as the code is."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from sgrec_torchrec import STAGES
from sgrec_torchrec.files import run_folder
from sgrec_torchrec.runs.steps import of_stages

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURE = ROOT / "docs" / "explain" / "architecture.md"
NUMBERED = [(number, stage) for number, stage in enumerate(STAGES, start=1)]
RUN_NAMES = {name for name in vars(run_folder).values() if isinstance(name, str)}
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \|.*\|.*\|(.*)\|$", re.MULTILINE)


@pytest.fixture(scope="module")
def tree() -> ModuleType:
    """docs/tree.py."""
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("number", "stage"), NUMBERED)
def test_docstrings_have_the_number(number: int, stage: str) -> None:
    source = ROOT / "sgrec_torchrec" / stage / "__init__.py"
    says = ast.get_docstring(ast.parse(source.read_text()))
    assert says is not None
    assert re.match(rf"Stage {number}, [\w -]+: ", says)


def test_no_other_room_calls_itself_a_stage() -> None:
    rooms = (ROOT / "sgrec_torchrec").glob("*/__init__.py")
    named = [path.parent.name for path in rooms if '"""Stage ' in path.read_text()]
    assert sorted(named) == sorted(STAGES)


def test_readme_numbers_them_alike() -> None:
    text = (ROOT / "README.md").read_text().partition("## Read the code")[2]
    found = re.findall(r"^(\d+)\. `(\w+)/`", text.partition("\n## ")[0], re.MULTILINE)
    assert [(int(number), stage) for number, stage in found] == NUMBERED


def test_the_architecture_numbers_them_alike_and_names_files_of_a_run() -> None:
    rows = ROW.findall(ARCHITECTURE.read_text())
    assert [(int(number), stage) for number, stage, _ in rows] == NUMBERED
    written = [name for *_, writes in rows for name in re.findall(r"`([^`]+)`", writes)]
    assert len(written) > len(STAGES)
    assert [name for name in written if name not in RUN_NAMES] == []


def test_steps_are_told_by_the_number() -> None:
    assert of_stages(()) == ""
    assert of_stages(("judge",)) == " (stage 7 judge)"
    assert of_stages(("a2po", "evaluation")) == " (stages 9 a2po, 10 evaluation)"


def test_the_tree_is_as_the_files_are(tree: ModuleType) -> None:
    page = ARCHITECTURE.read_text()
    assert page == tree.with_tree(page), "write it again: python docs/tree.py"


def test_the_tree_has_every_file(tree: ModuleType) -> None:
    listed = [line.split()[0] for line in tree.lines()]
    files = (ROOT / "sgrec_torchrec").rglob("*.py")
    names = [path.name for path in files if path.name != "__init__.py"]
    assert sorted(name for name in listed if name.endswith(".py")) == sorted(names)
