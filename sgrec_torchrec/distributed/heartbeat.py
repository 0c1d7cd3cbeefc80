"""Every rank shows that it lives; one that falls silent is named, and the others end.

A stopped process (a debugger, a frozen host, memory swapped out) closes no connection,
so collectives would wait for it until their timeout, and then name a healthy rank.
"""

import os
import socket
import sys
import threading
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

BEAT_S = 2.0
SILENCE_S = 50.0
"""A run ends within a minute of a rank's last sign of life."""
CONNECT_S = 60.0


class Heartbeat:
    """A context in which the ranks watch each other; two threads a rank.

    Every ``BEAT_S`` a rank adds 1 to its counter at the store and reads two keys; rank
    0 reads all counters (one call) and publishes who is silent, so the store's load
    grows linearly with the ranks. Patience is counted in rounds of one's own: a host
    that was asleep as a whole accuses nobody when it wakes. A rank that ends by itself
    needs no heartbeat to be noticed: its connections close.

    Args:
        rank: this process's.
        world_size: 1 starts nothing.
        silence_s: after which a rank counts as gone, in seconds. A call that holds
            Python's interpreter lock for longer would be taken for that.
    """

    def __init__(
        self, rank: int, world_size: int, silence_s: float = SILENCE_S
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._silence_s = silence_s
        self._patience = max(2, round(silence_s / BEAT_S))
        self._done = threading.Event()
        self._rounds = 0
        """Completed at the store; what the watching thread goes by."""

    def __enter__(self) -> "Heartbeat":
        if self._world_size > 1:
            store = _own_connection()
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._prefix = f"sgrec/{attempt}/heart"
            store.set(f"{self._prefix}/host/{self._rank}", socket.gethostname())
            for target, arguments in ((self._beat, (store,)), (self._watch, ())):
                threading.Thread(target=target, args=arguments, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()

    def _beat(self, store: Store) -> None:
        """Rounds at the store, until the end; one that hangs is the watch's matter."""
        watched = range(self._world_size) if self._rank == 0 else range(1)
        counters = [f"{self._prefix}/beats/{rank}" for rank in watched]
        last, unchanged = [b""] * len(counters), [0] * len(counters)
        verdict = f"{self._prefix}/silent"
        try:
            for counter in counters:
                store.add(counter, 0)
            while not self._done.wait(BEAT_S):
                store.add(f"{self._prefix}/beats/{self._rank}", 1)
                if store.check([verdict]):
                    self._end(store.get(verdict).decode())
                now = store.multi_get(counters)
                unchanged = [
                    rounds + 1 if count == before else 0
                    for rounds, count, before in zip(unchanged, now, last, strict=True)
                ]
                last = now
                silent = [r for r, n in enumerate(unchanged) if n >= self._patience]
                if silent:
                    who = _named(store, self._prefix, silent)
                    store.set(verdict, who)
                    self._done.wait(2 * BEAT_S)
                    self._end(who)
                self._rounds += 1
        except dist.DistError:
            # The store is gone, and with it the rank or the agent that held it: what
            # the main thread waits for fails by itself, with more to say.
            self._done.set()

    def _watch(self) -> None:
        """Where no round ends, whoever holds the store is the silent one."""
        seen, unchanged = -1, 0
        while not self._done.wait(BEAT_S):
            unchanged = unchanged + 1 if self._rounds == seen else 0
            seen = self._rounds
            if unchanged >= self._patience + 2:
                held_by = "rank 0, which holds the store that the ranks meet at,"
                if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                    held_by = "torchrun on the first host, which holds the store,"
                self._end(held_by)

    def _end(self, who: str) -> None:
        if self._done.is_set():
            return
        message = (
            f"{who} gave no sign of life for {self._silence_s:.0f} s: its process or "
            "its host is stopped, frozen or unreachable. This run ends; --resume goes "
            "on from the last checkpoint"
        )
        sys.stdout.flush()
        sys.stderr.write(f"[rank {self._rank}] {message}\n")
        sys.stderr.flush()
        get_error_handler().record_exception(RuntimeError(message))
        # The main thread waits in a collective, which nothing interrupts.
        os._exit(1)


def _own_connection() -> Store:
    """A call that waits at a store keeps others of the same connection waiting."""
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=CONNECT_S),
    )


def _named(store: Store, prefix: str, ranks: list[int]) -> str:
    """As "rank 3 on host a", or several."""
    hosts = [store.get(f"{prefix}/host/{rank}").decode() for rank in ranks]
    return " and ".join(
        f"rank {rank} on host {host}" for rank, host in zip(ranks, hosts, strict=True)
    )
