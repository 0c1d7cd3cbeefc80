"""The report shows what the run folder holds, escapes it, and misses nothing loudly."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sgrec_torchrec.files.sealed_json import write_sealed
from sgrec_torchrec.report.run_page import write_report

Results = dict[str, Any]
Examples = list[dict[str, Any]]


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_report_names_run_commit_versions_and_key_figures(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    text = Page(path).text
    for expected in (
        "movielens",
        "4f1c2a9be01d",
        "2.13.0+cpu",
        "AMD EPYC 9B14, 2 cores, 15.6 GiB",
        "2026-11-23 05:10 UTC",
        "671",
        "Seconds a step",
        "100,004",
        "research use, see its README",
        "231.4, 214.9, 198.02",
        "found at rank 4",
        "not among 10",
        "7 min 55 s in all",
        "num_epochs",
    ):
        assert expected in text, expected


def test_report_needs_no_network_and_no_script(run_dir: Path) -> None:
    page = Page(write_report(run_dir))
    assert not page.names() & {"script", "link", "iframe", "object", "base", "form"}
    sources = [value for _, attrs in page.tags if (value := attrs.get("src"))]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "url(" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "</style><svg onload=alert(4)>",
    "{{ 7 * 7 }}{% raw %}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_never_run(
    run_dir: Path, results: Results, examples: Examples, text: str
) -> None:
    plain = Page(write_report(run_dir))
    examples[0] |= {"user_id": text, "target": text, "history": [text]}
    examples[0]["recommended"][0]["title"] = text
    results |= {"protocol": text, "split": text}
    results["systems"][0]["system"] = text
    results["seconds"] = {text: 1.0}
    write(run_dir / "evaluation" / "examples.json", examples)
    write(run_dir / "evaluation" / "results.json", results)
    write(run_dir / "split" / "manifest.json", {text: text})
    write(run_dir / "canonical" / "manifest.json", {"note": text})
    write(run_dir / "tokens" / "quality.json", {text: [text]})
    write(run_dir / "config.json", {"name": text, "log": {text: text}})
    write(run_dir / "meta.json", {"commit": text, "hardware": text, "date": text})
    line = {"step": 1, "stage": text, "time_s": 0, "values": {"loss": 1.0}}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    page = Page(write_report(run_dir))
    assert page.names() == plain.names()
    handlers = [name for _, attrs in page.tags for name in attrs if name[:2] == "on"]
    assert handlers == []
    # name, title, commit, date, hardware; target, user, history, recommended; ...
    assert page.text.count(text) >= 20


def test_text_that_utf8_cannot_hold_does_not_stop_the_report(
    run_dir: Path, examples: Examples
) -> None:
    examples[0]["target"] = "half a pair: \ud83d"
    write(run_dir / "evaluation" / "examples.json", examples)
    assert "half a pair: ?" in Page(write_report(run_dir)).text


FILES = [
    "config.json",
    "metrics.jsonl",
    "split/manifest.json",
    "tokens/quality.json",
    "tokens/quality.png",
    "evaluation/results.json",
    "evaluation/examples.json",
]


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_is_said_so(run_dir: Path, name: str) -> None:
    assert f"No {name} in this run folder" not in Page(write_report(run_dir)).text
    (run_dir / name).unlink()
    assert f"No {name} in this run folder" in Page(write_report(run_dir)).text


def test_an_empty_run_folder_still_gives_a_report(tmp_path: Path) -> None:
    text = Page(write_report(tmp_path)).text
    for name in [*FILES, "meta.json", "seconds.json"]:
        assert f"No {name} in this run folder" in text
    assert tmp_path.name in text


def test_a_missing_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train a run first"):
        write_report(tmp_path / "nowhere")


def drop_metrics(results: Results) -> None:
    del results["systems"][0]["metrics"]


def drop_systems(results: Results) -> None:
    del results["systems"]


@pytest.mark.parametrize("harm", [drop_metrics, drop_systems])
def test_results_without_a_field_are_named(
    run_dir: Path, results: Results, harm: Callable[[Results], None]
) -> None:
    harm(results)
    write(run_dir / "evaluation" / "results.json", results)
    with pytest.raises(ValueError, match=r"results\.json: cannot be read \(KeyError"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".json")])
def test_a_damaged_file_is_named(run_dir: Path, name: str) -> None:
    (run_dir / name).write_text('{"cut off": ')
    with pytest.raises(ValueError, match=rf"{name}: cannot be read .* run the stage"):
        write_report(run_dir)


def test_an_example_without_a_field_is_named(run_dir: Path) -> None:
    write(run_dir / "evaluation" / "examples.json", [{"user_id": "1"}])
    with pytest.raises(ValueError, match=r"examples\.json: cannot be read"):
        write_report(run_dir)


def test_the_run_then_its_best_then_its_newest_checkpoint_tell_the_commit(
    run_dir: Path,
) -> None:
    def text() -> str:
        return Page(write_report(run_dir)).text

    (run_dir / "best" / "step-000000000400" / "manifest.json").unlink()
    for step, commit in ((200, "commit-old"), (400, "commit-new")):
        path = run_dir / "checkpoints" / f"step-{step:012d}" / "manifest.json"
        write(path, {"origin": {"commit": commit, "versions": {"torch": "2.9"}}})
        os.utime(path, (step, step))
    assert "commit-new" in text()
    assert "commit-old" not in text()
    best = run_dir / "best" / "step-000000000200" / "manifest.json"
    write(best, {"origin": {"commit": "from-best"}})
    assert "from-best" in text()
    write(run_dir / "meta.json", {"commit": "from-run"})
    assert "from-run" in text()


def test_a_run_without_config_shows_that_of_its_checkpoint(run_dir: Path) -> None:
    (run_dir / "config.json").unlink()
    write(run_dir / "best" / "step-000000000400" / "config.json", {"name": "saved"})
    assert "saved: run report" in Page(write_report(run_dir)).text


def test_without_a_date_the_last_metric_dates_the_run(run_dir: Path) -> None:
    (run_dir / "meta.json").unlink()
    # 1.8e9 s after 1970: 20833 days and 8 hours.
    assert "2027-01-15 08:00 UTC" in Page(write_report(run_dir)).text


def test_times_of_the_run_go_before_those_of_the_results(run_dir: Path) -> None:
    write(run_dir / "seconds.json", {"log": 2.0, "pretrain": 63.0})
    text = Page(write_report(run_dir)).text
    assert "1 min 05 s in all" in text
    assert "7 min 55 s" not in text
    write(run_dir / "seconds.json", {"log": "two"})
    with pytest.raises(ValueError, match=r"seconds\.json: cannot be read"):
        write_report(run_dir)


def test_a_date_of_another_form_is_shown_as_it_is(run_dir: Path) -> None:
    write(run_dir / "meta.json", {"date": "last Monday"})
    assert "last Monday" in Page(write_report(run_dir)).text


def test_values_that_are_not_finite_are_counted(run_dir: Path) -> None:
    line = {"step": 1500, "stage": "pretrain", "time_s": 0, "values": {"loss": None}}
    line["not_finite"] = {"loss": "nan"}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert "1 logged values are NaN or infinite" in Page(write_report(run_dir)).text


def test_only_eight_examples_and_the_newest_titles_are_shown(
    run_dir: Path, examples: Examples
) -> None:
    examples[0]["history"] = [f"film {n}" for n in range(13)]
    write(run_dir / "evaluation" / "examples.json", examples)
    page = Page(write_report(run_dir))
    assert sum(tag == "article" for tag, _ in page.tags) == 8
    # 13 titles, ten shown: film 3 to film 12.
    assert "3 earlier not shown" in page.text
    assert "film 3 film 4" in page.text
    assert "film 2 " not in page.text


def test_sealed_examples_are_shown_as_those_of_older_runs_unless_one_changed(
    run_dir: Path, examples: Examples
) -> None:
    path = run_dir / "evaluation" / "examples.json"
    write(path, examples)
    older = Page(write_report(run_dir)).text
    write_sealed(path, {"examples": examples})
    assert Page(write_report(run_dir)).text == older
    path.write_text(path.read_text().replace('"hit": false', '"hit": true', 1))
    with pytest.raises(ValueError, match=r"examples\.json: .*checksum does not fit"):
        write_report(run_dir)


@pytest.mark.long
def test_the_report_path_imports_no_torch() -> None:
    code = (
        "import sys, sgrec_torchrec.report.run_page; "
        "print([name for name in ('torch', 'torchrec') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
