"""A server process of the campaign, and what asks it: good requests, hostile bytes."""

import asyncio
import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.processes import Started, start

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
    """Seconds that /healthz took, asked all the time on connections of its own."""

    port: int
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def watch(self) -> None:
        """Until it is cancelled."""
        request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        while True:
            begin = time.perf_counter()
            status = await exchange(self.port, request)
            self.seconds.append(time.perf_counter() - begin)
            if status != 200:
                self.failures.append(f"/healthz: {status}")
            await asyncio.sleep(PAUSE_S)


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
