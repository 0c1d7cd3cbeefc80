"""Real server processes over the tiny package, each on a free port."""

import copy
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sgrec_torchrec.serving import Recommender
from sgrec_torchrec.serving.package import write_package
from sgrec_torchrec.serving.server.served_model import ServedModel, load_model

BEARER, ADMIN = "a-token-of-the-tests", "another-token-of-the-tests"
START = "from sgrec_torchrec.cli import main; main()"
ROOT = Path(__file__).resolve().parents[4]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


@dataclass(slots=True)
class Live:
    """A server process, as its clients and its operator reach it."""

    process: subprocess.Popen[str]
    port: int
    bearer: str | None
    admin: str | None
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> Answer:
        """One request on a connection of its own. A header of None is left out."""
        sent: dict[str, str | None] = {"Content-Type": "application/json"}
        if self.bearer:
            sent["Authorization"] = f"Bearer {self.bearer}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(
                method,
                path,
                body,
                {name: value for name, value in sent.items() if value is not None},
            )
            got = connection.getresponse()
            return Answer(
                got.status, {k.lower(): v for k, v in got.getheaders()}, got.read()
            )
        finally:
            connection.close()

    def ask(self, **fields: Any) -> Answer:
        return self.send("POST", "/recommend", json.dumps(fields))

    def reload(self, path: str = "/admin/reload", body: Any = None) -> Answer:
        """As the operator asks."""
        return self.send("POST", path, body, Authorization=f"Bearer {self.admin}")

    def stop(self) -> int:
        """SIGTERM until it ends: the second ends lingering, and two at once are one."""
        for _ in range(120):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(1)
            except subprocess.TimeoutExpired:
                continue
        return self.process.wait(1)

    def read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.log.append(json.loads(line))


def start(
    path: Path,
    *assignments: str,
    bearer: str | None = BEARER,
    admin: str | None = None,
    options: Sequence[str] = (),
    python: str = sys.executable,
) -> Live:
    words = [python, "-c", START, "serve", str(path), "--port", "0"]
    words += ["--threads", "1", *options]
    # No answer of a test may depend on how busy the machine is.
    for assignment in ("latency_ms=3600000", "linger_s=3600", *assignments):
        words += ["--set", assignment]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name, secret in (("SGREC_TOKEN", bearer), ("SGREC_ADMIN_TOKEN", admin)):
        environment.pop(name, None)
        if secret:
            environment[name] = secret
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, env=environment, cwd=path.parent
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if '"event": "listening"' in line:
            live = Live(process, json.loads(line)["port"], bearer, admin)
            threading.Thread(target=live.read_log, daemon=True).start()
            return live
    process.wait(60)
    raise RuntimeError("".join(told))


@pytest.fixture(scope="session")
def start_server(warm_python: Path) -> Iterator[Callable[..., Live]]:
    """start_server(path, "field=value", ..., bearer=..., admin=...) -> a server, ended
    at last; ``python`` is the interpreter, which has torch loaded already."""
    started: list[Live] = []

    def start_one(path: Path, *assignments: str, **options: Any) -> Live:
        words = {"python": str(warm_python)} | options
        started.append(start(path, *assignments, **words))
        return started[-1]

    yield start_one
    for live in started:
        live.process.kill()
        live.process.wait(60)


@pytest.fixture(scope="session")
def live(start_server: Callable[..., Live], package: Path) -> Live:
    """One server for all tests that leave it as it is."""
    return start_server(package)


@pytest.fixture(scope="session")
def admin() -> str:
    """The token of an operator."""
    return ADMIN


@pytest.fixture(scope="session")
def served(package: Path) -> ServedModel:
    return load_model(package, generation=1)


@pytest.fixture(scope="session")
def other_package(
    recommender: Recommender, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same catalogue under other weights and another name."""
    parts = recommender.parts
    network = copy.deepcopy(parts.network)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for head in network.tower.decoder.heads:
            head.weight += torch.randn(head.weight.shape, generator=noise)
    folder = tmp_path_factory.mktemp("package") / "other"
    settings = replace(parts.settings, made_of="other")
    write_package(replace(parts, network=network, settings=settings), folder)
    return folder
