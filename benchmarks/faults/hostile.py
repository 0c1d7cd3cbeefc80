"""A server under hostile requests, slow clients and reloads: it answers all others."""

import asyncio
import json
import os
import random
import shutil
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path

from faults.client import Health, Server, exchange, serving, watched_health
from faults.field import NAME, NUM_ITEMS, Field
from faults.outcome import FaultRow, measured, part, run_trials
from faults.processes import run

NUM_REQUESTS, NUM_SLOW, NUM_RELOADS = 100_000, 200, 100
AT_ONCE = 32
WARM_REQUESTS = 2_000
SLOW_S = 0.1
STALL_S = 0.5
GROWTH = 0.05
BIG = 1 << 16


def server_rows(field: Field, share: float, seed: int) -> Iterator[FaultRow]:
    """The rows of this module, one after another."""
    draw = random.Random(seed)
    with serving(field.package) as server:
        asyncio.run(attack(server, WARM_REQUESTS, random.Random(seed + 1)))
        before = server.resident_mib - server.kept_mib
        count = part(NUM_REQUESTS, share)
        with watched_health(server.port) as health:
            said = _done(_attacked(server, count, draw))
            row = run_trials("hostile requests", NUM_REQUESTS, said)
        yield row
        yield _worst("worst /healthz among them", health)
        # States are kept by design, and bounded: what is left has to stay.
        growth = (server.resident_mib - server.kept_mib) / before - 1
        yield measured("memory they leave, but for states", "more", growth, GROWTH)
        with watched_health(server.port) as health:
            slow = _done(_slow(server, part(NUM_SLOW, share)))
            row = run_trials("slow clients, all at once", NUM_SLOW, slow)
        yield row
        yield _worst("worst /healthz among those", health)
    count = max(2, round(NUM_RELOADS * share))
    yield run_trials("reloads under load", NUM_RELOADS, reloads(field, count, draw))


def _done(calls: Coroutine[None, None, list[str | None]]) -> Iterator[str | None]:
    """Begun when the first is asked for, so that the row's clock covers it."""
    yield from asyncio.run(calls)


def _worst(name: str, health: Health) -> FaultRow:
    worst = max(health.seconds) if not health.failures else float("inf")
    return measured(name, "s", worst, STALL_S)


async def _attacked(
    server: Server, count: int, draw: random.Random
) -> list[str | None]:
    """And none came to a 5xx whose client had gone: most end their half at once."""
    before = server.num_failed
    said = await attack(server, count, draw)
    failed = server.num_failed - before
    return [*([f"{failed} answers of 5xx"] if failed else []), *said]


async def attack(server: Server, count: int, draw: random.Random) -> list[str | None]:
    """Each is answered by 2xx or 4xx, or its connection is closed."""
    # Made one by one: all at once would take the memory of tens of thousands.
    requests = (hostile(draw) for _ in range(count))

    async def some() -> list[str | None]:
        said: list[str | None] = []
        for data in requests:
            status = await exchange(server.port, data)
            is_answered = status is None or 200 <= status < 500
            said.append(None if is_answered else f"{status}: {data[:60]!r}")
        return said

    found = await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return [one for said in found for one in said]


async def _slow(server: Server, count: int) -> list[str | None]:
    """A byte every tenth of a second; whoever is not slow is answered meanwhile."""
    body = json.dumps({"history": ["i1"]}).encode()
    head = _head("POST", "/recommend", len(body))

    async def one() -> str | None:
        status = await exchange(server.port, head + body, SLOW_S)
        return None if status is None or status < 500 else f"{status}"

    return await asyncio.gather(*(one() for _ in range(count)))


def hostile(draw: random.Random) -> bytes:
    """One of the kinds that clients, scanners and fuzzers send."""
    path = draw.choice(("/recommend", "/similar", "/admin/reload", "/", "/..%2f", "/x"))
    kind = draw.randrange(10)
    if kind == 0:
        return draw.randbytes(draw.randrange(1, 200))
    if kind == 1:
        return _head("GET", "/" + "a" * draw.randrange(BIG), 0)
    if kind == 2:
        lines = b"".join(b"X-%d: y\r\n" % n for n in range(draw.randrange(1, 2000)))
        return b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
    if kind == 3:
        size = draw.choice(("-1", "1e9", "99999999999999999999", "a", "0x10"))
        return _head("POST", path, size)
    if kind == 4:
        chunks = draw.choice(
            (b"zz\r\n", b"-1\r\n", b"ffffffffffffffff\r\n", b"1\r\nab")
        )
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head.encode() + chunks
    if kind == 5:
        depth = draw.randrange(1, 5000)
        body = b'{"history":' + b"[" * depth + b"]" * depth + b"}"
    elif kind == 6:
        body = draw.randbytes(draw.randrange(300))
    elif kind == 7:
        body = json.dumps({"history": ["i1"] * draw.randrange(12_000)}).encode()
    else:
        body = json.dumps({"history": _value(draw), "k": _value(draw)}).encode()
    data = _head(draw.choice(("POST", "PUT", "GET", "HEAD")), path, len(body)) + body
    return data[: draw.randrange(len(data))] if kind == 9 else data


def _value(draw: random.Random) -> object:
    odd = (None, -1, 0, 1 << 80, 1.5, 1e308, True, "", "\x00", "i1", "\ud800" * 3, {})
    return draw.choice((draw.choice(odd), [draw.choice(odd) for _ in range(3)]))


def _head(method: str, path: str, size: int | str) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode()


def reloads(field: Field, count: int, draw: random.Random) -> Iterator[str | None]:
    """Good packages and bad ones by turns; every answer is of one of the good."""
    place = field.root / "served"
    if not place.is_dir():
        _make_packages(field, place)
    _lead(place, "a")
    history = [f"i{n}" for n in draw.sample(range(NUM_ITEMS), 5)]
    with serving(place) as server:
        lists, wrong, done = {"a": server.items(history)}, [], threading.Event()
        _lead(place, "b")
        server.ask("POST", "/admin/reload")
        lists["b"] = server.items(history)

        def load() -> None:
            while not done.is_set():
                body = {"history": history, "k": 10}
                status, answer = server.ask("POST", "/recommend", body)
                got = [one["item_id"] for one in (answer or {}).get("items", ())]
                if got not in lists.values():
                    wrong.append(f"neither package's answer: {status}, {answer}")

        clients = [threading.Thread(target=load) for _ in range(4)]
        for client in clients:
            client.start()
        current = "b"
        for _ in range(count):
            name = draw.choice(("a", "b", "cut", "empty"))
            _lead(place, name)
            status, _ = server.ask("POST", "/admin/reload")
            current = name if name in lists else current
            expected = 200 if name in lists else 409
            if status != expected:
                yield f"reload of {name}: {status} instead of {expected}"
            elif server.items(history) != lists[current]:
                yield f"after a reload of {name}: not the answers of {current}"
            else:
                yield wrong.pop() if wrong else None
        done.set()
        for client in clients:
            client.join()
        yield from wrong


def _make_packages(field: Field, place: Path) -> None:
    """Two good ones, a and b, and two that no server may take."""
    place.mkdir()
    _export(field, place / "b")
    shutil.copytree(field.package, place / "a")
    for name, size in (("cut", 100), ("empty", 0)):
        shutil.copytree(field.package, place / name)
        for path in (place / name).glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:size])


def _export(field: Field, out: Path) -> None:
    ended = run("export", field.runs(seed=1) / NAME, "--out", out)
    if ended.code != 0:
        raise RuntimeError(f"the second package cannot be made: {ended.said}")


def _lead(place: Path, name: str) -> None:
    """``current`` leads to it, by an atomic rename."""
    link = place / ".current"
    link.symlink_to(name)
    os.replace(link, place / "current")
