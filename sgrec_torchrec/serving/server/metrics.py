"""What /metrics tells. Labels come from fixed lists, never from a client."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 1.0, 2.5, 10.0)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """One registry a server, so that two of them in a process do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "sgrec_requests_total",
            "Answered requests.",
            ["path", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "sgrec_request_seconds",
            "From the head of a request to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            "sgrec_waiting", "Admitted requests without answer.", registry=registry
        )
        self.refused = Counter(
            "sgrec_refused_total", "Turned away: over capacity.", registry=registry
        )
        self.batch_users = Histogram(
            "sgrec_batch_users", "Users of a pass.", buckets=USERS, registry=registry
        )
        self.batch_seconds = Histogram(
            "sgrec_batch_seconds", "Of a pass.", buckets=SECONDS, registry=registry
        )
        self.user_seconds = Gauge(
            "sgrec_user_seconds", "Measured pace: seconds a user.", registry=registry
        )
        self.states = Counter(
            "sgrec_states_total",
            "Users' states: known, grown from a known one, or made afresh.",
            ["how"],
            registry=registry,
        )
        self.unknown_events = Counter(
            "sgrec_unknown_events_total",
            "Events left out: of items that the model does not have.",
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "sgrec_state_cache_bytes", "Memory of kept states.", registry=registry
        )
        self.cache_users = Gauge(
            "sgrec_state_cache_users", "Kept states.", registry=registry
        )
        self.reloads = Counter(
            "sgrec_reloads_total", "Reloads of the model.", ["how"], registry=registry
        )
        self.generation = Gauge(
            "sgrec_model_generation", "Of the model that serves.", registry=registry
        )

    def render(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
