"""What an operator sets, and the bounds of what a client may ask for."""

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

BOUNDS: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "passes": (1, 256),
    "max_batch": (1, 1024),
    "batch_wait_ms": (0, 1_000),
    "latency_ms": (1, 3_600_000),
    "max_queue": (1, 100_000),
    "max_connections": (1, 100_000),
    "max_body_bytes": (1_024, 64 << 20),
    "max_events": (1, 100_000),
    "max_k": (1, 4_096),
    "max_listed": (1, 1_000_000),
    "state_cache_mib": (0, 1 << 20),
    "read_timeout_s": (0.01, 3_600),
    "keep_alive_s": (1, 3_600),
    "linger_s": (0, 3_600),
    "drain_s": (1, 3_600),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Of one server process."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine alone."""
    port: int = 8000
    """0 takes a free one, which the log names."""
    passes: int = 2
    """Passes of the network at a time, which share the threads; never more than these.
    Two passes of one thread answer more users than one of two threads, and what else
    the host does holds up only one of them."""
    max_batch: int = 32
    """Users of one pass of the network."""
    batch_wait_ms: float = 2.0
    """How long the first request of a batch waits for others, where there were others
    during the last pass."""
    latency_ms: float = 250.0
    """Target from admission to answer. Who would wait longer is turned away (429)."""
    max_queue: int = 256
    """Requests that wait, whatever the target allows."""
    max_connections: int = 512
    """Open connections, each with a body of up to ``max_body_bytes``. A further one
    takes the place of an idle one; where none is, it gets 503, but for /healthz,
    /readyz and /metrics."""
    max_body_bytes: int = 1 << 20
    max_events: int = 10_000
    """Newest events of a history that are looked at."""
    max_k: int = 100
    """Longest list; a longer one needs more beams."""
    max_listed: int = 10_000
    """Entries of ``allowed`` and of ``blocked``."""
    state_cache_mib: int = 512
    """Memory for the states of users who may come back."""
    read_timeout_s: float = 10.0
    """For the head of a request, its body, and each part of an answer."""
    keep_alive_s: float = 75.0
    """How long a connection without a request stays open; it counts among
    ``max_connections``. Longer than load balancers keep theirs, often 60 s: else one
    sends a request into a connection that is just being closed, and answers 502."""
    proxies: str = ""
    """Addresses and networks, as ``10.0.0.0/8``, whose ``X-Forwarded-For`` and
    ``X-Forwarded-Proto`` are believed; commas or spaces between them."""
    linger_s: float = 5.0
    """After SIGTERM: how long requests are still taken while /readyz says 503, until
    load balancers have noticed."""
    drain_s: float = 30.0
    """How long requests in work may take to end after that."""
    compiled: bool = False
    """Run a package's compiled programs; see ``Recommender.load``."""
    bearer: str | None = dataclasses.field(default=None, repr=False)
    """Token that clients send; None asks for none."""
    admin_bearer: str | None = dataclasses.field(default=None, repr=False)
    """Token for /admin, and for nothing else; None turns /admin off. Never the clients'
    own: who may ask must not be able to swap the model."""

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} = {value!r} is outside [{low:g}, {high:g}]")
        self.proxy_networks()
        for name, secret in (("bearer", self.bearer), ("admin", self.admin_bearer)):
            if secret is None:
                continue
            is_plain = secret.isascii() and secret.isprintable()
            if len(secret) < 16 or " " in secret or not is_plain:
                raise ValueError(
                    f"the {name} token is too short or has odd characters: give at "
                    "least 16 printable ASCII characters without spaces, as `openssl "
                    "rand -hex 32` prints"
                )
        if self.admin_bearer is not None and self.admin_bearer == self.bearer:
            raise ValueError(
                "the admin token is that of the clients, who could then swap the "
                "model: give it a value of its own"
            )

    def proxy_networks(self) -> list[str]:
        """The entries of ``proxies``.

        Raises:
            ValueError: for one that is neither an address nor a network.
        """
        networks = re.split(r"[,\s]+", self.proxies.strip()) if self.proxies else []
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(
                    f"proxies = {self.proxies!r}: {error}; give addresses or networks, "
                    "as 127.0.0.1,10.0.0.0/8"
                ) from None
        return networks

    def to_plain(self) -> dict[str, Any]:
        """For the log: all but the tokens."""
        plain = dataclasses.asdict(self)
        for name in ("bearer", "admin_bearer"):
            plain[name] = "set" if plain[name] else None
        return plain
