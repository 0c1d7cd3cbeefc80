"""``sgrec serve`` under load, against transformers.generate behind FastAPI.

    python benchmarks/bench_serving.py [--json PATH] [--compiled] [--seconds 20]

Network of bench_decode (dim 256, 4 layers, random weights), 100,000 items, histories of
150 events, 50 beams, k = 10. Clients (``http_clients``, the same for both), server and
peer share the machine. Before the clock starts, both servers' items and scores are
compared.

1. Users a second at p99 <= 250 ms: closed loop, the best of 1, 2, 4, ... clients.
2. A user who comes back with one more event, against new ones; one client.
3. Twice the saturating load, open loop: p99 of the admitted, goodput, memory; goodput
   in turns with the peak, too.
4. Packages of 100,000 and 1,000,000 items: time to load, memory of int8 tables.
"""

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from http_clients import closed_loop, new_history, open_loop
from package_rows import package_rows
from peers.serving_package import made_parts
from reporting import Row, relative_spread, report

from sgrec_torchrec.serving.package import write_package

HERE = Path(__file__).resolve().parent
TARGET_S = 0.25
START = "from sgrec_torchrec.cli import main; main()"
SCORE_TOLERANCE = 1e-3
NUM_CHECKED = 5
NUM_CONNECTIONS = 128


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(self, **fields: object) -> tuple[float, dict[str, list[dict[str, object]]]]:
        """One request: its seconds and its body."""
        start = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        body = json.dumps(fields)
        try:
            self.connection.request("POST", "/recommend", body, headers)
            got = self.connection.getresponse()
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            # Both servers close a connection that has been idle for 5 s.
            self.connection.close()
            self.connection.request("POST", "/recommend", body, headers)
            got = self.connection.getresponse()
        told = json.loads(got.read())
        return time.perf_counter() - start, told


def peak(port: int, seconds: float, most: int) -> tuple[float, int]:
    """Most users a second whose p99 keeps the target, and of how many clients.

    Where no number of clients keeps it, that of one client: the target is then missed.
    """
    best, clients, first = 0.0, 0, 0.0
    for num_clients in (2**power for power in range(most.bit_length())):
        load = closed_loop(port, num_clients, seconds)
        rate, p99_s = load.users_a_second, load.percentile(0.99)
        print(
            f"{num_clients} clients: {rate:.2f} users/s, p99 {1000 * p99_s:.0f} ms; "
            f"the clients took {load.processor_s / seconds:.3f} processors"
        )
        first = first or rate
        if p99_s > TARGET_S:
            break
        if rate > best:
            best, clients = rate, num_clients
    return (best, clients) if clients else (first, 0)


def check_equal(ours: int, peer: int) -> None:
    """The same items with the same scores, but for ties.

    Raises:
        RuntimeError: where they differ by more than rounding.
    """
    noise = random.Random(0)
    for _ in range(NUM_CHECKED):
        history = new_history(noise)
        lists = [Client(port).ask(history=history, k=10)[1] for port in (ours, peer)]
        pairs = zip(*(told["items"] for told in lists), strict=True)
        worst = max(
            abs(float(str(a["score"])) - float(str(b["score"]))) for a, b in pairs
        )
        if worst > SCORE_TOLERANCE:
            raise RuntimeError(f"scores differ by {worst}")
    print(f"equal to the peer in {NUM_CHECKED} lists")


def returning_row(port: int, num_users: int) -> Row:
    noise, client = random.Random(7), Client(port)
    cold, warm = [], []
    for user in range(num_users):
        history = new_history(noise)
        name = f"user{user}"
        cold.append(client.ask(user=name, history=history[:-1], k=10)[0])
        warm.append(client.ask(user=name, history=history, k=10)[0])
    return Row(
        name="a returning user with one more event, one client",
        unit="s",
        ours=median(warm),
        peer=median(cold),
        peer_name="a new user with 149 events",
        ratio=median(cold) / median(warm),
        spread=relative_spread(warm),
    )


def overload_rows(
    port: int, process: int, best: float, seconds: float
) -> Iterator[Row]:
    before = resident_mib(process)
    busy = processor_s(process)
    load = open_loop(port, 2 * best, seconds, NUM_CONNECTIONS)
    busy = processor_s(process) - busy
    statuses = sorted({one.status for one in load.done})
    print(
        f"overload: {len(load.done)} sent, statuses {statuses}; processors: clients "
        f"{load.processor_s / seconds:.3f}, server {busy / seconds:.3f}"
    )
    p99_s, goodput = load.percentile(0.99), load.users_a_second
    figures = (
        ("p99 of the admitted", "s", p99_s, TARGET_S, TARGET_S / p99_s, "target"),
        (
            "goodput",
            "users/s",
            goodput,
            best,
            goodput / best,
            "peak",
        ),
        ("memory afterwards", "MiB", resident_mib(process), before, None, "before"),
    )
    for name, unit, ours, peer, ratio, peer_name in figures:
        yield Row(
            name=f"twice the load for {seconds:g} s: {name}",
            unit=unit,
            ours=ours,
            peer=peer,
            peer_name=peer_name,
            ratio=ratio,
            spread=0.0,
        )


def in_turns_row(port: int, clients: int, seconds: float, turns: int) -> Row:
    """Goodput beside the peak of the same minutes: a machine's speed drifts.

    Each turn is a closed loop of so many clients, then twice its rate as an open one.
    """
    pairs = []
    for turn in range(turns):
        full = closed_loop(port, clients, seconds).users_a_second
        load = open_loop(port, 2 * full, seconds, NUM_CONNECTIONS)
        pairs.append((full, load.users_a_second))
        print(
            f"turn {turn + 1}: {full:.1f} users/s by {clients} clients, then "
            f"{load.users_a_second:.1f} at twice that, p99 "
            f"{1000 * load.percentile(0.99):.0f} ms"
        )
    shares = [good / full for full, good in pairs]
    full, good = (median(column) for column in zip(*pairs, strict=True))
    return Row(
        name=f"{turns} turns of {seconds:g} s of the peak and of twice it: goodput",
        unit="users/s",
        ours=good,
        peer=full,
        peer_name="peak",
        ratio=median(shares),
        spread=relative_spread(shares),
    )


def resident_mib(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def processor_s(process: int) -> float:
    """Seconds that a process has had of the processors."""
    text = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(words: list[str], port: int) -> Iterator[int]:
    """A server process, once it answers; its id."""
    paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, *words], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            try:
                Client(port).ask(history=["item1"], k=1)
                break
            except OSError:
                time.sleep(0.5)
        if process.poll() is not None:
            raise RuntimeError(f"{words} ended with {process.returncode}")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def measure(args: argparse.Namespace, package: Path) -> Iterator[Row]:
    ours_port, peer_port = args.port, args.port + 1
    threads = str(args.threads)
    ours = ["-c", START, "serve", str(package), "--port", str(ours_port)]
    ours += ["--threads", threads, "--set", f"passes={args.passes}"]
    ours += ["--log-level", "warning"]
    ours += ["--compiled"] if args.compiled else []
    peer = [str(HERE / "peers" / "generate_server.py"), str(package)]
    peer += [str(peer_port), threads]
    with running(ours, ours_port) as process:
        with running(peer, peer_port):
            check_equal(ours_port, peer_port)
            peer_best, peer_clients = peak(peer_port, args.seconds, args.most_clients)
        best, clients = peak(ours_port, args.seconds, args.most_clients)
        met = [
            f"at {n} clients" if n else "target missed" for n in (clients, peer_clients)
        ]
        yield Row(
            name=f"new users, p99 <= 250 ms ({met[0]})",
            unit="users/s",
            ours=best,
            peer=peer_best,
            peer_name=f"generate behind FastAPI ({met[1]})",
            ratio=best / peer_best if peer_best else None,
            spread=0.0,
        )
        yield returning_row(ours_port, args.users)
        yield from overload_rows(ours_port, process, best, args.overload_seconds)
        yield in_turns_row(ours_port, clients or 1, args.seconds, args.turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--threads", type=int, default=2, help="of each server")
    parser.add_argument("--passes", type=int, default=2, help="which share ours")
    parser.add_argument(
        "--compiled", action="store_true", help="export and run compiled programs"
    )
    parser.add_argument("--port", type=int, default=18_000, help="and the one after")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a load")
    parser.add_argument("--overload-seconds", type=float, default=60.0)
    parser.add_argument("--turns", type=int, default=5, help="of peak and overload")
    parser.add_argument("--most-clients", type=int, default=64)
    parser.add_argument("--users", type=int, default=40, help="who come back")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package"
        write_package(made_parts(), package, compiled=args.compiled)
        rows = list(measure(args, package))
    report([*rows, *package_rows()], args.json)


if __name__ == "__main__":
    main()
