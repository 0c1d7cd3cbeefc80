"""docs/ and README against the code: commands, settings, Python names and links.

Nothing is executed here: words are parsed by the parsers of the commands themselves.
``test_docs_run`` runs them.
"""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer
from documented_lines import FENCE, PAGES, ROOT, name_of, python_blocks, shell_lines

from sgrec_torchrec.cli import app
from sgrec_torchrec.config import RUNS
from sgrec_torchrec.config.arguments import override, parse_run, parse_with
from sgrec_torchrec.runs import pipeline
from sgrec_torchrec.serving.server.command import parse_settings

NAMES = [name_of(page) for page in PAGES]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = typer.main.get_command(app)


def program_words(line: str) -> tuple[str, list[str]] | None:
    """Which of our programs a line calls, and the words that the program gets."""
    if not re.search(r"(^|[\s/])(sgrec|train\.py|make)(\s|$)", line):
        return None
    words = shlex.split(line, comments=True)
    for place, word in enumerate(words):
        name = word.rpartition("/")[2]
        if name in ("sgrec", "train.py") or (name == "make" and place == 0):
            return name, words[place + 1 :]
    return None


def check_sgrec(words: list[str]) -> None:
    """Raise unless the words are a command with its arguments and known options."""
    command, path = COMMAND, ["sgrec"]
    while hasattr(command, "commands"):
        assert words, f"{' '.join(path)}: which command?"
        assert words[0] in command.commands, f"{' '.join(path)}: no {words[0]!r}"
        command = command.commands[words[0]]
        path.append(words[0])
        words = words[1:]
    if path[1] in ("train", "pipeline"):
        check_run(words, path[1])
        return
    # Parses and converts all words; the command is called by `invoke` alone.
    given = command.make_context(" ".join(path), list(words)).params
    assignments = list(given.get("assignments") or [])
    if path[1] == "serve":
        parse_settings({}, dict(one.split("=", 1) for one in assignments), None)
    else:
        override(RUNS["movielens"], assignments)


def check_run(words: list[str], program: str) -> None:
    """Raise unless ``train.py`` or ``sgrec pipeline`` takes the words."""
    parse = parse_run if program == "train" else parse_pipeline
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        parse(["--help"])
    for word in words:
        # argparse would take the beginning of an option, too.
        is_known = re.search(rf"{re.escape(word)}(?![\w-])", shown.getvalue())
        assert is_known or not word.startswith("--"), f"no option {word}"
    parse([word for word in words if word != "--help"])


def parse_pipeline(words: list[str]) -> object:
    return parse_with(pipeline._parser(), words)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert word in targets or "=" in word, f"make has no target {word!r}"


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "sgrec": check_sgrec,
    "train.py": lambda words: check_run(words, "train"),
    "make": check_make,
}


def wrong_lines(page: Path) -> Iterator[str]:
    for line in shell_lines(page):
        called = program_words(line)
        if called is None:
            continue
        program, words = called
        try:
            CHECKS[program](words)
        except SystemExit as stopped:  # argparse has printed what is wrong
            yield f"{line}: exit code {stopped.code}"
        except (AssertionError, ValueError, *CLICK_ERRORS) as error:
            yield f"{line}: {getattr(error, 'message', error)}"


def click_errors() -> tuple[type[Exception], ...]:
    """What the parser of typer raises, whichever click it carries."""
    with pytest.raises(Exception, match="No such option") as raised:
        COMMAND.commands["doctor"].make_context("doctor", ["--no-such-option"])
    return tuple(
        kind for kind in type(raised.value).__mro__ if kind.__name__ == "UsageError"
    )


CLICK_ERRORS = click_errors()


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist_with_these_options(name: str) -> None:
    assert list(wrong_lines(ROOT / name)) == []


def test_commands_are_found_at_all() -> None:
    called = [program_words(one) for page in PAGES for one in shell_lines(page)]
    programs = [one[0] for one in called if one is not None]
    assert programs.count("sgrec") > 50
    assert programs.count("train.py") > 5


@pytest.mark.parametrize(
    "line",
    [
        "sgrec servee package",
        "sgrec judge",
        "sgrec judge train runs/a --epochs 3",
        "sgrec export runs/a",
        "sgrec table lookup table --user 1",
        "sgrec loop runs/a --rounds two",
        "sgrec loop runs/a --set align.steps=3",
        "sgrec serve package --set latency=3",
        "sgrec train --run nowhere",
        "sgrec train --set pretrain.epochs=3",
        "sgrec pipeline --judge x",
        ".venv-vllm/bin/sgrec judge run runs/a --backends vllm",
        "torchrun --no-python sgrec candidates runs/a --users 3",
        "torchx run dist.ddp -j 2x8 sgrec_torchrec/train.py --restart",
        "KEY=value sgrec evaluate",
        "make trains",
    ],
)
def test_a_wrong_command_is_found(line: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```sh\n{line}   # what it does\n```\n", encoding="utf-8")
    assert len(list(wrong_lines(page))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_inline_commands_exist(name: str) -> None:
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    for inline in re.findall(r"`sgrec ([^`]+)`", text):
        command, words = COMMAND, inline.split()
        while hasattr(command, "commands") and words and words[0].islower():
            assert words[0] in command.commands, inline
            command = command.commands[words.pop(0)]
        known = {option for one in command.params for option in one.opts}
        used = {word for word in words if word.startswith("--") and known}
        assert used <= {*known, "--help"}, inline


@pytest.mark.parametrize("name", NAMES)
def test_settings_named_in_words_exist(name: str) -> None:
    text = FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))
    stages = "log|graph|evidence|tokens|generator|pretrain|align|evaluation"
    for stage, field in re.findall(rf"`({stages})\.(?!py`)([a-z_0-9]+)[`= ]", text):
        assert hasattr(getattr(RUNS["movielens"], stage), field), f"{stage}.{field}"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if not re.match(r"https?://", link):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.exists(), f"{link} leads nowhere"
            assert target.is_relative_to(ROOT), f"{link} leaves the repository"


@pytest.mark.parametrize("name", NAMES)
def test_python_imports_what_there_is(name: str) -> None:
    for block in python_blocks(ROOT / name):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = import_module(node.module)
                for one in node.names:
                    assert hasattr(module, one.name), f"{node.module}.{one.name}"
