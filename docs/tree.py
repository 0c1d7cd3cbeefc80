"""The package as a tree, a line a file, from docstrings into explain/architecture.md.

python docs/tree.py
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from sgrec_torchrec import STAGES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sgrec_torchrec"
PAGE = ROOT / "docs" / "explain" / "architecture.md"
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->\n"


def main() -> None:
    """Write the tree into the page."""
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tree(page: str) -> str:
    """The page with the tree as the files are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(lines())
    return f"{before}{BEGIN}```text\n{tree}\n```\n{END}{after}"


def lines() -> Iterator[str]:
    """Folders in the order of ``STAGES``, then the rest; a folder's files by name."""
    yield from folder_lines(PACKAGE, 0)


def folder_lines(folder: Path, depth: int) -> Iterator[str]:
    """The folder, its files, then the folders in it."""
    yield line(f"{folder.name}/", folder / "__init__.py", depth)
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield line(path.name, path, depth + 1)
    inner = (path.parent for path in folder.glob("*/__init__.py"))
    for path in sorted(inner, key=place):
        yield from folder_lines(path, depth + 1)


def place(folder: Path) -> tuple[int, str]:
    """Stages first, by number."""
    is_stage = folder.name in STAGES and folder.parent == PACKAGE
    return (STAGES.index(folder.name) if is_stage else len(STAGES), folder.name)


def line(name: str, path: Path, depth: int) -> str:
    """Name and first line of the docstring."""
    says = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = says.split("\n")[0].replace("``", "").removesuffix(".")
    return f"{'  ' * depth}{name:<{30 - 2 * depth}}{first}"


if __name__ == "__main__":
    main()
