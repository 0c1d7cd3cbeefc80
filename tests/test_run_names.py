"""Files and folders of a run are named in ``run_folder`` alone, as they always were."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgrec_torchrec.files import run_folder

PACKAGE = Path(run_folder.__file__).parents[1]
NAMES = {
    value
    for name, value in vars(run_folder).items()
    if name.isupper() and "/" not in value
}
FILES = {name for name in NAMES if "." in name or "*" in name}
OTHER_THINGS = {
    # of a Hugging Face model
    ("judge/backends/language_model.py", "config.json"),
    # labelled pairs, not those that training missed
    ("judge/learn/labels.py", "pairs.parquet"),
    # where a round's row of steps lies, not the trained judge
    ("runs/closed_loop.py", "/judge"),
}
AS_EVER = (
    *("config.json", "meta.json", "metrics.jsonl", "tensorboard", "seconds.json"),
    *("report.html", "published.json", "pretrained.json", "arm.json", "manifest.json"),
    *(
        "prepared",
        "canonical",
        "covisits",
        "split",
        "items.parquet",
        "graph-form",
        "graph",
    ),
    *(
        "graph.json",
        "evidence",
        "scorer",
        "scorer.safetensors",
        "teacher",
        "texts",
        "tokens",
    ),
    *("quality.json", "quality.png", "best", "checkpoints", "step-*", "state.json"),
    *("evaluation", "evaluation-pretrained", "results.json", "examples.json"),
    *("aligned", "gain.json", "misses-*.parquet", "missed", "advantages-*.parquet"),
    *("candidates", "candidates.parquet", "users.parquet", "labels", "reward_table"),
    *("judge", "judge.json", "report.json", "judged", "part-*.parquet", "index.html"),
    *("logs", "steps", "row.json", "loop", "round-*", "round.json", "begin.json"),
    *("pairs.parquet", "checkpoint"),
)


def spelled_names(tree: ast.AST) -> list[ast.Constant]:
    """Literals that spell a name of a run's, or any name joined to ``run_dir``.

    A folder's name is a common word: it counts where it is part of a path.
    """
    nodes = list(ast.walk(tree))
    joins = [
        node
        for node in nodes
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    ]
    joined = {id(part) for node in joins for part in literals(node.right)}
    below_run = {
        id(node.right) for node in joins if ast.unparse(node.left).endswith("run_dir")
    }
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    offenders = []
    for node in nodes:
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        parts = node.value.split("/")
        is_path = id(node) in joined or len(parts) > 1
        known = NAMES if is_path else FILES
        is_spelled = id(node) in below_run or not known.isdisjoint(parts)
        if is_spelled and id(node) not in docstrings:
            offenders.append(node)
    return offenders


def literals(node: ast.AST) -> Iterator[ast.AST]:
    """The node itself, and the parts of an f-string."""
    yield node
    if isinstance(node, ast.JoinedStr):
        yield from node.values


def test_only_the_run_folder_spells_names_of_a_run() -> None:
    offenders = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        for node in spelled_names(ast.parse(path.read_text(encoding="utf-8"))):
            is_other = (place, node.value) in OTHER_THINGS
            if place != "files/run_folder.py" and not is_other:
                offenders.append(f"{place}:{node.lineno} {node.value!r}")
    assert offenders == [], "name it in files/run_folder.py, and import that"


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ('run_dir / "config.json"', "run_dir / CONFIG"),
        ('self.run_dir / "new.json"', "self.run_dir / NEW"),
        ('folder / "judged"', 'told["judged"]'),
        ('folder / f"{name}/judged"', 'folder / f"{name}/other"'),
        ('Step(inputs=("judged/part-*.parquet",))', 'Step(name="judged")'),
        ('MANIFEST = "manifest.json"', 'text = "manifest.json says so"'),
        ('run_dir / "evaluation" / RESULTS', 'def f():\n "manifest.json"'),
    ],
)
def test_a_spelled_name_is_told_from_other_words(bad: str, good: str) -> None:
    assert len(spelled_names(ast.parse(bad))) == 1
    assert spelled_names(ast.parse(good)) == []


def test_names_on_disk_stay_so_that_older_runs_open() -> None:
    assert set(AS_EVER) == NAMES
    named = [name for name in vars(run_folder).values() if isinstance(name, str)]
    paths = {name for name in named if "/" in name}
    assert {
        *("split/manifest.json", "graph/graph.json", "candidates/manifest.json"),
        *("judge/judge.json", "reward_table/manifest.json", "evaluation/results.json"),
        *("best/step-*/manifest.json", "aligned/best/step-*/manifest.json"),
    } <= paths


def test_numbered_files_have_five_digits() -> None:
    assert run_folder.nth(run_folder.MISSES, 7) == "misses-00007.parquet"
