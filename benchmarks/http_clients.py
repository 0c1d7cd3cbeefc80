"""Clients of a server, many in one thread: they share its cores, so they must be cheap.

They do not wait out Retry-After: the load is what it is said to be.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from peers.serving_package import HISTORY, NUM_ITEMS

TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    seconds: float
    """From the sending of the request, or from when it was due, to its whole answer."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of all requests, and what sending them cost."""

    done: list[Done]
    seconds: float
    processor_s: float
    """Of the clients."""

    @property
    def users_a_second(self) -> float:
        """The answered ones."""
        return sum(one.status == 200 for one in self.done) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds of the answered; infinite where none was."""
        times = sorted(one.seconds for one in self.done if one.status == 200)
        place = min(len(times) - 1, int(share * len(times)))
        return times[place] if times else float("inf")


class Connection(asyncio.Protocol):
    """One request at a time; it is kept, or made anew where it was closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._got, self._size = bytearray(), 0

    async def ask(self, request: bytes) -> int:
        """The status, once the whole answer is there.

        Raises:
            OSError: where the connection breaks before that.
        """
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        assert self._transport is not None
        self._got.clear()
        self._size, self._answer = 0, loop.create_future()
        self._transport.write(request)
        async with asyncio.timeout(TIMEOUT_S):
            return await self._answer

    def close(self) -> None:
        """No further request."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio asks."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """As asyncio asks. Both servers announce the length of each answer."""
        self._got += data
        head = self._got.find(b"\r\n\r\n")
        if not self._size and head >= 0:
            told = bytes(self._got[:head]).lower()
            length = told.split(b"content-length:")[1].split(b"\r\n")[0]
            self._size = head + 4 + int(length)
        is_asked = self._answer is not None and not self._answer.done()
        if is_asked and self._size and len(self._got) >= self._size:
            assert self._answer is not None
            self._answer.set_result(int(self._got[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio asks."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed"))


def request_of(history: list[str]) -> bytes:
    """The bytes of one request."""
    body = json.dumps({"history": history, "k": 10}).encode()
    head = (
        "POST /recommend HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def new_history(noise: random.Random) -> list[str]:
    """Of a user whom no server has seen."""
    return [f"item{noise.randrange(NUM_ITEMS)}" for _ in range(HISTORY)]


def closed_loop(port: int, num_clients: int, seconds: float) -> Load:
    """New users, one after the other from each client."""

    async def run(done: list[Done]) -> None:
        end = time.perf_counter() + seconds

        async def work(number: int) -> None:
            noise, connection = random.Random(number), Connection(port)
            while time.perf_counter() < end:
                request = request_of(new_history(noise))
                start = time.perf_counter()
                status = await connection.ask(request)
                done.append(Done(status, time.perf_counter() - start))
            connection.close()

        await asyncio.gather(*(work(number) for number in range(num_clients)))

    return _measured(run, seconds)


def open_loop(
    port: int, users_a_second: float, seconds: float, num_connections: int
) -> Load:
    """New users at a fixed rate, whether the server keeps up or not.

    A request that finds no free connection waits for one, and its clock runs.
    """

    async def run(done: list[Done]) -> None:
        noise, start = random.Random(0), time.perf_counter()
        free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for _ in range(num_connections):
            free.put_nowait(Connection(port))

        async def one(request: bytes, due: float) -> None:
            connection = await free.get()
            status = await connection.ask(request)
            done.append(Done(status, time.perf_counter() - due))
            free.put_nowait(connection)

        async with asyncio.TaskGroup() as group:
            for ticket in range(int(users_a_second * seconds)):
                request = request_of(new_history(noise))
                due = start + ticket / users_a_second
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(request, due))
        while not free.empty():
            free.get_nowait().close()

    return _measured(run, seconds)


def _measured(
    run: Callable[[list[Done]], Coroutine[None, None, None]], seconds: float
) -> Load:
    done: list[Done] = []
    before_s = time.process_time()
    asyncio.run(run(done))
    return Load(done, seconds, time.process_time() - before_s)
