"""What docs/generate.py adds to the site; ``make docs`` builds the whole of it."""

import dataclasses
import importlib.util
import re
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from documented_lines import ROOT

from sgrec_torchrec.cli import app
from sgrec_torchrec.config import RUNS, STAGES

pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    path = ROOT / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(path: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=path))


def test_every_verb_and_option_is_listed(site: ModuleType) -> None:
    text = site.on_page_markdown("<!-- commands -->", page("reference/commands.md"))
    seen = []
    commands = [("sgrec", typer.main.get_command(app))]
    while commands:
        path, command = commands.pop()
        for name, verb in getattr(command, "commands", {}).items():
            commands.append((f"{path} {name}", verb))
        for one in command.params if path.count(" ") else ():
            seen += [option for option in one.opts if option.startswith("--")]
        assert f"## {path}\n" in text or path == "sgrec"
    assert len(seen) > 50
    assert [option for option in seen if f"`{option}`" not in text] == []
    assert "--judge-model" in text, "of sgrec pipeline, which argparse reads"
    assert "| `--written` | `0` |" in text


@pytest.mark.long
def test_every_setting_is_listed_with_its_default(site: ModuleType) -> None:
    text = site.on_page_markdown("<!-- settings -->", page("reference/settings.md"))
    for name in STAGES:
        part = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for field in dataclasses.fields(getattr(RUNS["movielens"], name)):
            assert f"| `{field.name}` | `{field.default!r}` |" in part
    assert "| `latency_ms` | `250.0` |" in text
    assert "| `bearer` | `None` |" in text


@pytest.mark.parametrize(
    ("path", "link", "expected"),
    [
        ("a.md", "(../benchmarks/results/x.md)", "(benchmarks/results/x.md)"),
        ("how-to/a.md", "(../../benchmarks/x.md#y)", "(../benchmarks/x.md#y)"),
        ("how-to/a.md", "(../explain/b.md)", "(../explain/b.md)"),
        ("how-to/a.md", "(b.md)", "(b.md)"),
        ("a.md", "(https://arxiv.org/abs/2602.10606)", None),
        (
            "how-to/a.md",
            "(../../examples/plug_into_torchrec/align_my_model.py)",
            "(../examples/plug_into_torchrec/align_my_model.md)",
        ),
    ],
)
def test_links_out_of_docs_lead_to_pages_of_the_site(
    site: ModuleType, path: str, link: str, expected: str | None
) -> None:
    assert site.on_page_markdown(f"[x]{link}", page(path)) == f"[x]{expected or link}"


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        "<img alt=x src=http://images.example/x.png>",
    ],
)
def test_a_page_that_fetches_from_elsewhere_stops_the_build(
    site: ModuleType, tag: str
) -> None:
    with pytest.raises(Exception, match=r"a\.md fetches from elsewhere: <"):
        site.on_post_page(f"<p>{tag}</p>", page("a.md"))
    own = '<script src="assets/x.js"></script><a href="https://arxiv.org">x</a>'
    assert site.on_post_page(own, page("a.md")) == own


def test_every_page_is_in_the_navigation() -> None:
    pages = {path.relative_to(ROOT / "docs") for path in ROOT.glob("docs/**/*.md")}
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"\S+\.md$", text.partition("\nnav:\n")[2], re.MULTILINE)
    assert sorted(map(str, pages)) == sorted(named)
