"""The words of ``sgrec serve``, and what the logs say."""

import asyncio
import json
import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from sgrec_torchrec.serving.server import process
from sgrec_torchrec.serving.server.command import parse_settings, run_server
from sgrec_torchrec.serving.server.observe import JsonLines
from sgrec_torchrec.serving.server.settings import ServerSettings


def run(path: Path, **changes: Any) -> None:
    files = {"token_file": None, "admin_token_file": None}
    words = files | {"num_threads": 1, "log_level": "info", "assignments": {}} | changes
    run_server(path, {"port": 0}, **words)


def test_texts_become_numbers() -> None:
    made = parse_settings({"port": 7}, {"max_k": "5", "latency_ms": "1.5"}, None)
    assert made == ServerSettings(port=7, max_k=5, latency_ms=1.5)
    for name, text in (("max_k", "5.5"), ("latency_ms", "soon")):
        with pytest.raises(ValueError, match=f"--set {name}={text}: give a number"):
            parse_settings({}, {name: text}, None)
    for name in ("bearer", "admin_bearer", "host", "tea"):
        with pytest.raises(ValueError, match=f"--set {name}: no such field"):
            parse_settings({}, {name: "a" * 20}, None)


@pytest.mark.parametrize(
    ("threads", "asked", "of_a_pass", "passes"),
    [(4, "2", 2, 2), (5, "2", 2, 2), (1, "2", 1, 1), (3, "8", 1, 3)],
)
def test_passes_share_the_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    asked: str,
    of_a_pass: int,
    passes: int,
) -> None:
    found: list[tuple[int, int]] = []

    def serve(_: Path, settings: ServerSettings, __: str) -> None:
        found.append((torch.get_num_threads(), settings.passes))

    monkeypatch.setattr(process, "serve", serve)
    before = torch.get_num_threads()
    try:
        run(tmp_path, assignments={"passes": asked}, num_threads=threads)
    finally:
        torch.set_num_threads(before)
    assert found == [(of_a_pass, passes)]


@pytest.mark.parametrize(
    ("variable", "option", "field"),
    [
        ("SGREC_TOKEN", "token_file", "bearer"),
        ("SGREC_ADMIN_TOKEN", "admin_token_file", "admin_bearer"),
    ],
)
def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    option: str,
    field: str,
) -> None:
    found: list[ServerSettings] = []
    monkeypatch.setattr(
        process, "serve", lambda _, settings, __: found.append(settings)
    )
    monkeypatch.setenv(variable, "from-the-environment")
    path = tmp_path / "token"
    path.write_text("from-the-file-itself\n")
    run(tmp_path)
    run(tmp_path, **{option: path})
    monkeypatch.delenv(variable)
    run(tmp_path)
    tokens = [getattr(settings, field) for settings in found]
    assert tokens == ["from-the-environment", "from-the-file-itself", None]
    for content in ("\n", "a" * 5_000):
        path.write_text(content)
        with pytest.raises(ValueError, match="token holds no token: write one line"):
            run(tmp_path, **{option: path})
    with pytest.raises(ValueError, match="--log-level 'loud': give debug"):
        run(tmp_path, log_level="loud")


def test_a_port_that_is_taken_is_told_before_the_model_is_read(tmp_path: Path) -> None:
    taken = process._bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    with taken, pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        process._bind("127.0.0.1", port)


def test_answers_are_sent_at_once() -> None:
    async def accepted() -> int:
        found = asyncio.get_running_loop().create_future()

        def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket"))

        server = await asyncio.start_server(
            answer, sock=process._bind("127.0.0.1", 0), start_serving=True
        )
        address = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(*address)
        no_delay = (await found).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        server.close()
        return int(no_delay)

    assert asyncio.run(accepted())


def test_a_log_line_is_json_whatever_it_holds() -> None:
    record = logging.LogRecord("n", logging.INFO, "", 0, 'a\n"%s"', ("b",), None)
    record.fields = {"path": Path("/a")}
    line = JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["event"], told["level"], told["path"]) == ('a\n"b"', "info", "/a")
