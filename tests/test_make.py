"""``make help`` and the options that reach pytest, as make would run them."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*words: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_help_lists_every_target_with_its_words() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^(\S+):.*  ## (.+)$", text, re.MULTILINE)
    assert "test-fast" in dict(targets)
    listed = re.findall(r"^  make (\S+) +(.+)$", make("help"), re.MULTILINE)
    assert listed == targets


@pytest.mark.parametrize(
    ("words", "has_workers"),
    [(("WORKERS=2",), True), (("ARGS=-p no:xdist -x",), False)],
)
def test_tests_are_spread_where_the_plugin_is(
    words: tuple[str, ...], has_workers: bool
) -> None:
    for target in ("test", "test-fast"):
        line = make("--dry-run", target, *words)
        assert ("-n 2 --dist loadfile" in line) == has_workers
        assert ("not long" in line) == (target == "test-fast")


def test_options_of_the_caller_come_last() -> None:
    line = make("--dry-run", "test", "ARGS=-n 0 -x")
    assert line.rstrip().endswith("-n 0 -x")
