"""The page's script, taken out of the template and run in node where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.report import judge_page as page

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")


@pytest.fixture(scope="module")
def script() -> str:
    template = Path(page.__file__).with_name(page.TEMPLATE).read_text(encoding="utf-8")
    (found,) = re.findall(r"{% set script %}(.*?){% endset %}", template, re.DOTALL)
    return str(found)


def run(script: str, call: str) -> Any:
    """What a call of one of the script's functions gives, outside a browser."""
    assert NODE
    source = f"{script}\nconsole.log(JSON.stringify({call}));"
    done = subprocess.run(
        [NODE, "-"], input=source, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_text_is_only_set_as_text(script: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write", script)


@needs_node
@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (1, ["d", "b", "c", "a", "e"]),
        # equal ones keep their order, missing ones are last again
        (-1, ["b", "c", "d", "a", "e"]),
    ],
)
def test_rows_sort_by_number_with_missing_last(
    script: str, direction: int, expected: list[str]
) -> None:
    rows = '[["a", null], ["b", 0.5], ["c", 0.5], ["d", 0], ["e", null]]'
    call = f"sorted({rows}, (row) => row[1], {direction}).map((row) => row[0])"
    assert run(script, call) == expected


@needs_node
def test_text_sorts_as_people_count(script: str) -> None:
    call = 'sorted(["u10", "u9", "U1"], (text) => text, 1)'
    assert run(script, call) == ["U1", "u9", "u10"]


@needs_node
@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # 0.9 is above and one tie beside it: places 2 to 3 of 4
        ("[0.5, 0.9, 0.5, 0.1]", [2, 3, 4]),
        ("[0.5, null, 0.1]", [1, 1, 2]),
        ("[null, 0.3]", None),
    ],
)
def test_place_of_the_next_item(script: str, scores: str, expected: Any) -> None:
    """The first score is the next item's."""
    rows = f"{scores}.map((score, at) => [score, at])"
    call = f"nextPlaces({rows}, (row) => row[1] === 0, (row) => row[0])"
    assert run(script, call) == expected
