"""A server process of the campaign, and what asks it: good requests, hostile bytes."""

import asyncio
import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from faults.processes import CONTEXT, Started, start

ADMIN = "a-token-of-the-fault-campaign"
START_S = 60.0
ANSWER_S = 30.0
PAUSE_S = 0.05


@dataclass(slots=True)
class Server:
    """``sgrec serve``, by its port."""

    started: Started
    port: int

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request on a connection of its own: status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {ADMIN}",
        }
        text = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, text, headers)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else None
        finally:
            connection.close()

    def items(self, history: list[str]) -> list[str]:
        """What it recommends; empty where it does not answer 200."""
        status, answer = self.ask("POST", "/recommend", {"history": history, "k": 10})
        return [one["item_id"] for one in answer["items"]] if status == 200 else []

    @property
    def resident_mib(self) -> float:
        """Its memory now."""
        status = Path(f"/proc/{self.started.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    @property
    def kept_mib(self) -> float:
        """Of it, the states of users who may come back, as it counts them."""
        return self._counted(r"sgrec_state_cache_bytes") / (1 << 20)

    @property
    def num_failed(self) -> int:
        """Requests that it has answered by 5xx, or would have if the client stayed."""
        return int(self._counted(r'sgrec_requests_total\{.*status="5..".*\}'))

    def _counted(self, metric: str) -> float:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=ANSWER_S) as told:
            text = told.read().decode()
        return sum(map(float, re.findall(rf"^{metric} (\S+)$", text, re.MULTILINE)))


@contextmanager
def serving(package: Path, *options: str) -> Iterator[Server]:
    """A server over the package, ended by SIGTERM.

    Raises:
        RuntimeError: where it does not listen within a minute.
    """
    words = ["serve", package, "--port", "0", "--set", "linger_s=0", *options]
    started = start(words, SGREC_ADMIN_TOKEN=ADMIN)
    end = time.monotonic() + START_S
    while not (found := re.search(r'"port": (\d+), "model"', started.said())):
        if time.monotonic() > end or not started.process.is_alive():
            raise RuntimeError(f"the server did not start: {started.wait(0).said}")
        time.sleep(PAUSE_S)
    server = Server(started, int(found[1]))
    try:
        yield server
    finally:
        started.kill(15)
        started.wait(60)


@dataclass(slots=True)
class Health:
    """Seconds that /healthz took, and what else than 200 it said."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def watched_health(port: int) -> Iterator[Health]:
    """Filled at the end.

    Asked all the time from a process of its own: an attacker's clock stops wherever
    the attacker is busy.
    """
    health = Health()
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_watch, args=(port, theirs))
    process.start()
    try:
        yield health
    finally:
        ours.send(None)
        health.seconds, health.failures = ours.recv()
        process.join()


def _watch(port: int, told: Connection) -> None:
    """Until anything is told; then tell what was found."""
    seconds, failures = [], []
    while not seconds or not told.poll(PAUSE_S):
        begin = time.perf_counter()
        status = asked_health(port)
        seconds.append(time.perf_counter() - begin)
        if status != 200:
            failures.append(f"/healthz: {status}")
    told.send((seconds, failures))


def asked_health(port: int) -> object:
    """The status on a connection of its own, or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return error
    finally:
        connection.close()


async def exchange(port: int, data: bytes, pause_s: float = 0.0) -> int | None:
    """Send bytes, read the status; None where the connection was closed without.

    Args:
        pause_s: between every two bytes; 0 sends them at once.
    """
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in data if pause_s else ():
            writer.write(bytes([byte]))
            await asyncio.sleep(pause_s)
        if not pause_s:
            writer.write(data)
        if writer.can_write_eof():
            writer.write_eof()
        line = await asyncio.wait_for(reader.readline(), ANSWER_S)
        return int(line.split()[1]) if line.startswith(b"HTTP/1.") else None
    except (OSError, asyncio.IncompleteReadError):
        return None
    except TimeoutError:
        return 0
    finally:
        if writer is not None:
            writer.close()
