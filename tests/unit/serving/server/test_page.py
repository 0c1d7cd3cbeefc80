"""The page at ``/``: one file, nothing from elsewhere, and it works in a browser."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def open_server(start_server: Callable[..., Any], package: Path) -> Any:
    """Without a token, as on a laptop."""
    return start_server(package, bearer=None)


def test_nothing_comes_from_elsewhere(open_server) -> None:
    answer = open_server.send("GET", "/")
    html = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://|innerHTML", html)
    assert html.isascii()


def test_examples_are_histories_that_the_server_takes(open_server) -> None:
    told = open_server.send("GET", "/examples").json
    assert len(told["examples"]) == 6
    assert not told["needs_token"]
    for example in told["examples"]:
        ids = [item["item_id"] for item in example["items"]]
        assert 1 <= len(ids) <= 5
        assert open_server.ask(history=ids, k=told["max_k"]).status == 200


def test_with_a_token_the_catalogue_is_not_shown_to_all(live) -> None:
    told = live.send("GET", "/examples", Authorization=None).json
    assert (told["examples"], told["needs_token"]) == ([], True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_history_items_and_why(open_server, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    flags += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
    assert CHROMIUM
    done = subprocess.run(
        [CHROMIUM, *flags, open_server.url],
        capture_output=True,
        text=True,
        timeout=240,
    )
    dom = done.stdout
    first = open_server.send("GET", "/examples").json["examples"][0]
    ids = [item["item_id"] for item in first["items"]]
    fields = {"history": ids, "k": 10, "filters": {"seen": True}, "explain": True}
    told = open_server.ask(**fields).json
    history, items = dom.split('id="history"')[1].split('id="h-items"')
    for item_id in ids:
        assert f'<span class="title">{item_id}</span>' in history
    rows = re.findall(r"<tr>(.*?)</tr>", items.split("<tbody")[1], re.S)
    assert len(rows) == len(told["items"]) > 0
    for row, item in zip(rows, told["items"], strict=True):
        assert f"<td>{item['item_id']}<" in row
        assert f"{item['score']:.3f}" in row
        for near in item["near"]:
            told_near = f"near {near['item_id']}: {near['shared_codes']} of 2 codes"
            assert told_near in row
    assert 'id="token-row" hidden' in history + dom
    assert f"{told['model']}, generation 1" in dom
