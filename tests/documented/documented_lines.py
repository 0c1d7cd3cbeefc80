"""README and the pages of docs/ as commands and Python snippets, word for word."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELLS = ("sh", "bash")
PYTHON = re.compile(r"(from|import) |rewards, |Recommender")
"""How README's indented lines of Python begin."""


def name_of(page: Path) -> str:
    """Its path below the project's root."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[str]:
    """Bodies of the fenced blocks of these languages."""
    return [body for kind, body in FENCE.findall(text) if kind in languages]


def shell_lines(page: Path) -> list[str]:
    """Lines of shell blocks, and README's indented ones; continuations joined."""
    text = page.read_text(encoding="utf-8")
    found = blocks(text, *SHELLS)
    if page.name == "README.md":
        lines = re.findall(r"^ {4}(.+)$", text, re.MULTILINE)
        found.append("\n".join(line for line in lines if not PYTHON.match(line)))
    joined = "\n".join(found).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def python_blocks(page: Path) -> list[str]:
    """Snippets, each to be run by itself; README's indented ones by paragraph."""
    text = page.read_text(encoding="utf-8")
    found = blocks(text, "python")
    if page.name == "README.md":
        for paragraph in re.findall(r"(?:^ {4}.+\n)+", text, re.MULTILINE):
            lines = [line[4:] for line in paragraph.splitlines()]
            if PYTHON.match(lines[0]):
                found.append("\n".join(lines) + "\n")
    return found


def command_of(line: str) -> str:
    """A line without its comment and with single blanks: how lists name it."""
    return " ".join(re.sub(r"\s+#\s.*$", "", line).split())


def commands(*pages: Path) -> list[str]:
    """Distinct commands of the pages, in the order in which they stand there."""
    lines = [line for page in pages or PAGES for line in shell_lines(page)]
    return list(dict.fromkeys(command_of(line) for line in lines))
