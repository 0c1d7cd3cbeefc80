"""What nobody writes of the site; mkdocs calls the functions named ``on_``.

- The reference of commands and settings, from the parsers and dataclasses themselves,
  where ``<!-- commands -->`` and ``<!-- settings -->`` stand.
- ``benchmarks/results/*.md`` and the example, to which docs/ links. On the site docs/
  is the root, so that links which leave docs/ lose one ``../``.

A page that would fetch anything from another host stops the build.
"""

import contextlib
import dataclasses
import io
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sgrec_torchrec.cli import app
from sgrec_torchrec.config import STAGES
from sgrec_torchrec.config.arguments import parse_run
from sgrec_torchrec.runs import pipeline
from sgrec_torchrec.serving.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
EXAMPLE = "examples/plug_into_torchrec/align_my_model.py"
ARGPARSE: dict[str, Callable[[list[str]], object]] = {
    "sgrec train": parse_run,
    "sgrec pipeline": pipeline.main,
}
"""Verbs that hand their words on."""
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    texts = {EXAMPLE.replace(".py", ".md"): example_page()}
    for path in sorted((ROOT / RESULTS).glob("*.md")):
        name = "index.md" if path.name == "README.md" else path.name
        texts[f"{RESULTS}/{name}"] = path.read_text(encoding="utf-8")
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    if config.nav is not None:
        config.nav.append({"Measured": [name for name in texts if RESULTS in name]})
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill marks in; links that leave docs/ -> links within the site."""
    here = posixpath.dirname(page.file.src_uri)
    for mark, parts in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n\n".join(parts()))

    def within(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, found[1]))
        if not path.startswith("../"):
            return found[0]
        path = path.removeprefix("../").replace(EXAMPLE, EXAMPLE.replace(".py", ".md"))
        return f"]({posixpath.relpath(path, here or '.')}"

    return LINK.sub(within, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Hold the page to what lies beside it."""
    foreign = [tag for tag in FETCHED.findall(output) if "canonical" not in tag]
    if foreign:
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {foreign[0]}")
    return output


def all_commands() -> Iterator[str]:
    """Every verb of ``sgrec`` with its arguments and options."""
    return command_parts(typer.main.get_command(app), "sgrec")


def command_parts(command: Any, path: str) -> Iterator[str]:
    """A heading, what it does, and what it takes, for each verb below ``command``."""
    for name, verb in sorted(command.commands.items()):
        whole = f"{path} {name}"
        yield f"## {whole}"
        yield escaped(verb.help or "")
        if hasattr(verb, "commands"):
            yield from command_parts(verb, whole)
        elif whole in ARGPARSE:
            yield f"```text\n{argparse_help(ARGPARSE[whole])}\n```"
            yield "Fields of `--set`: [settings](settings.md)."
        elif verb.params:
            yield parameter_table(verb.params)


def argparse_help(parse: Callable[[list[str]], object]) -> str:
    """What ``--help`` prints, but for the list of fields."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        parse(["--help"])
    return shown.getvalue().partition("Fields of --set")[0].strip()


def parameter_table(params: list[Any]) -> str:
    """Arguments first, as they are given."""
    rows = ["| | default | |", "|---|---|---|"]
    for one in params:
        is_option = one.param_type_name == "option"
        names = [*one.opts, *one.secondary_opts] if is_option else [one.name.upper()]
        default = "required" if one.required else shown_default(one)
        says = escaped(one.help or "") + (" May be repeated." if one.multiple else "")
        words = " / ".join(f"`{name}`" for name in names)
        rows.append(f"| {words} | {default} | {says.strip()} |")
    return "\n".join(rows)


def shown_default(parameter: Any) -> str:
    """Empty where nothing is set, and for a flag that is off.

    An option that goes before a setting of the run has that setting's default as text.
    """
    if isinstance(parameter.show_default, str):
        return f"`{parameter.show_default}`"
    if parameter.default is None or parameter.default is False:
        return ""
    return f"`{parameter.default}`"


def all_settings() -> Iterator[str]:
    """Every field of a run and of the server, with its default."""
    config = griffe.load("sgrec_torchrec.config", search_paths=[ROOT])
    for name, stage in STAGES.items():
        yield from class_parts(name, stage, config)
    server = griffe.load("sgrec_torchrec.serving.server.settings", search_paths=[ROOT])
    yield from class_parts("sgrec serve", ServerSettings, server)


def class_parts(title: str, settings: Any, module: Any) -> Iterator[str]:
    """A table of the fields of one dataclass; their docstrings are in its source."""
    source = module[settings.__name__]
    yield f"## {title}"
    yield escaped(source.docstring.value)
    rows = ["| field | default | |", "|---|---|---|"]
    for field in dataclasses.fields(settings):
        docstring = source[field.name].docstring
        says = docstring.value if docstring else ""
        rows.append(f"| `{field.name}` | `{field.default!r}` | {escaped(says)} |")
    yield "\n".join(rows)


def escaped(text: str) -> str:
    """Plain words as Markdown: one line, nothing taken for a tag or a column."""
    line = " ".join(text.replace("``", "`").split())
    return line.replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def example_page() -> str:
    """The example's code."""
    code = (ROOT / EXAMPLE).read_text(encoding="utf-8")
    return f"# {EXAMPLE}\n\n```python\n{code}```\n"


MARKS: dict[str, Callable[[], Iterator[str]]] = {
    "<!-- commands -->": all_commands,
    "<!-- settings -->": all_settings,
}
