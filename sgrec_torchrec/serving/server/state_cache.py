"""The states of users who may come back: least recently used go first."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from sgrec_torchrec.serving.encoder import UserState

ENTRY_BYTES = 2_048
"""What an entry costs beside its arrays: key, objects, links."""


class StateCache:
    """Bounded by bytes. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[Hashable, UserState] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: Hashable) -> UserState | None:
        """The state, which then counts as used; None where there is none."""
        with self._lock:
            state = self._states.get(key)
            if state is not None:
                self._states.move_to_end(key)
            return state

    def put(self, key: Hashable, state: UserState) -> None:
        """Keep a state; one that alone is beyond the bound is not kept."""
        with self._lock:
            self._drop(key)
            if _cost(state) > self.max_bytes:
                return
            self._states[key] = state
            self.num_bytes += _cost(state)
            while self.num_bytes > self.max_bytes:
                self._drop(next(iter(self._states)))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._states.clear()
            self.num_bytes = 0

    def _drop(self, key: Hashable) -> None:
        state = self._states.pop(key, None)
        if state is not None:
            self.num_bytes -= _cost(state)


def _cost(state: UserState) -> int:
    return state.num_bytes + ENTRY_BYTES
