"""Docstrings against the code: what stands in double backticks must exist.

``room.module``, ``room.module.name``, ``module.name`` of the same folder,
``Class.name`` and ``stage.setting`` are looked up; only the settings are imported.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from sgrec_torchrec.config import RUNS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sgrec_torchrec"
DOTTED = re.compile(r"``([A-Za-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?``")
SINGLE = re.compile(r"``([A-Za-z_]\w*)(?:\([^`]*\))?``")
FILES = {"html", "json", "jsonl", "parquet", "py"}
WORDS_OF_OTHERS = {
    *("torchrun", "broadcast_buffers", "weight_init_max", "LOCAL_WORLD_SIZE"),
    *("Comedy", "default_cache_dir"),
}
"""Single words that no code of ours holds: other programs' names, and examples."""
Functions = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Docstring:
    """A text, and what can be named in it without a prefix."""

    module: str
    line: int
    text: str
    local: frozenset[str]


@dataclass(frozen=True)
class Module:
    """What one file defines."""

    tree: ast.Module
    names: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    """Imported from other packages."""
    classes: dict[str, set[str]] = field(default_factory=dict)
    """Members of each class."""


def targets(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds."""
    if isinstance(node, Functions | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        bound = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in bound:
            yield from (one.id for one in ast.walk(target) if isinstance(one, ast.Name))


def members(node: ast.ClassDef) -> set[str]:
    """Fields and methods, and what a method binds to ``self``."""
    found = {name for one in node.body for name in targets(one)}
    bound = (
        target
        for one in ast.walk(node)
        if isinstance(one, ast.Assign | ast.AnnAssign)
        for target in (one.targets if isinstance(one, ast.Assign) else [one.target])
    )
    attributes = (one for target in bound for one in ast.walk(target))
    return found | {one.attr for one in attributes if isinstance(one, ast.Attribute)}


def read_module(text: str) -> Module:
    """The definitions of a file's text."""
    module = Module(ast.parse(text))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            module.classes[node.name] = members(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            source = getattr(node, "module", None) or ""
            if not source.startswith(PACKAGE):
                module.foreign.update(targets(node), [source.split(".")[0]])
    for node in module.tree.body:
        module.names.update(targets(node))
        if isinstance(node, ast.If):  # what is imported for types alone
            module.names.update(name for one in node.body for name in targets(one))
    return module


@cache
def package() -> dict[str, Module]:
    """The package's modules by name, without the package's own; rooms included."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = read_module(path.read_text(encoding="utf-8"))
    return found


def docstrings(name: str, module: Module) -> Iterator[Docstring]:
    """Every text that stands as a statement: of modules, classes, functions, fields."""

    def visit(node: ast.AST, local: frozenset[str]) -> Iterator[Docstring]:
        if isinstance(node, Functions):
            local |= {
                one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)
            }
        elif isinstance(node, ast.ClassDef):
            local |= module.classes[node.name]
        for child in ast.iter_child_nodes(node):
            value = getattr(child, "value", None)
            if isinstance(child, ast.Expr) and isinstance(value, ast.Constant):
                if isinstance(value.value, str):
                    yield Docstring(name, child.lineno, value.value, local)
            elif isinstance(child, ast.stmt):
                yield from visit(child, local)

    yield from visit(module.tree, frozenset())


def is_defined(parts: list[str]) -> bool:
    """Do the parts lead to a module, to a name in one, or to a member of its class?"""
    for size in range(len(parts), 0, -1):
        module, rest = package().get(".".join(parts[:size])), parts[size:]
        if module is None:
            continue
        if not rest:
            return True
        if rest[0] in module.names:
            return len(rest) == 1 or is_member(rest)
    return False


def is_member(parts: list[str]) -> bool:
    """Is it ``Class.name``, of any class of the package?"""
    owner, name, *deeper = parts
    known = (one.classes.get(owner, set()) for one in package().values())
    return not deeper and any(name in found for found in known)


def is_setting(parts: list[str]) -> bool:
    """Is it ``stage.field`` of a run?"""
    stage = getattr(RUNS["smoke"], parts[0], None)
    return len(parts) == 2 and hasattr(stage, parts[1])


def resolves(reference: str, found: Docstring) -> bool:
    """Whether a dotted reference leads anywhere."""
    parts = reference.removeprefix(f"{PACKAGE}.").split(".")
    module = package().get(found.module, Module(ast.Module([], [])))
    # A room's own text names its modules; a module's text its neighbours.
    is_room = any(name.startswith(f"{found.module}.") for name in package())
    folder = found.module.split(".") if is_room else found.module.split(".")[:-1]
    known = found.local | module.foreign | set(dir(builtins))
    return (
        parts[-1] in FILES
        or parts[0] in known
        or is_setting(parts)
        or is_defined(parts)
        or is_defined([*folder, *parts])
        or is_member(parts)
    )


@cache
def all_docstrings() -> list[Docstring]:
    return [one for item in package().items() for one in docstrings(*item)]


def test_what_docstrings_name_by_its_module_exists() -> None:
    found = [
        (one, name) for one in all_docstrings() for name in DOTTED.findall(one.text)
    ]
    assert len(found) > 80, "no references were read"
    lost = [
        f"{one.module}:{one.line} {name}"
        for one, name in found
        if not resolves(name, one)
    ]
    assert lost == []


def words_of_code() -> set[str]:
    """Identifiers of the package, and words of its texts other than docstrings."""
    found = set(dir(builtins))
    documented = {one.text for one in all_docstrings()}
    for name, module in package().items():
        found.update(name.split("."))
        for node in ast.walk(module.tree):
            found.update(targets(node))
            match node:
                case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word):
                    found.add(word)
                case ast.keyword(arg=str(word)):
                    found.add(word)
                case ast.Constant(value=str(text)) if text not in documented:
                    found.update(re.findall(r"\w+", text))
    return found


def test_what_docstrings_name_by_a_word_exists() -> None:
    known = words_of_code() | WORDS_OF_OTHERS
    lost = [
        f"{one.module}:{one.line} {word}"
        for one in all_docstrings()
        for word in SINGLE.findall(one.text)
        if word not in known
    ]
    assert lost == []


@pytest.mark.parametrize(
    ("module", "reference", "is_found"),
    [
        ("generator", "logs.token_batch.TokenBatch", True),
        ("generator", "schema.TokenBatch", False),
        ("generator", "beam.beam_search", True),
        ("generator.model", "beam.beam_search", True),
        ("generator.model", "generator.beam", True),
        ("generator.model", "evidence.beam", False),
        ("generator.model", "Tower.forward", True),
        ("generator.model", "Tower.backward", False),
        ("generator.model", "align.table", True),
        ("generator.model", "align.chair", False),
        ("generator.model", "sgrec_torchrec.hashing.hash64", True),
        ("generator.model", "sgrec_torchrec.logs.hashing", False),
        ("generator.model", "logs.token_batch.TokenBatch.features", True),
        ("generator.model", "logs.token_batch.TokenBatch.fixtures", False),
        ("generator.model", "torch.export", True),
        ("generator.model", "metrics.jsonl", True),
    ],
)
def test_a_lost_reference_is_told_from_a_good_one(
    module: str, reference: str, is_found: bool
) -> None:
    found = Docstring(module, 1, "", frozenset())
    assert resolves(reference, found) is is_found


def test_texts_of_modules_classes_functions_and_fields_are_read() -> None:
    text = '"""M"""\nclass A:\n    """C"""\n    x: int\n    """F"""\n'
    text += 'def f(a):\n    """``a.b``"""\n    return a\n'
    found = list(docstrings("m", read_module(text)))
    assert [one.text for one in found] == ["M", "C", "F", "``a.b``"]
    assert [sorted(one.local) for one in found] == [[], ["x"], ["x"], ["a"]]
