"""When one more request would be answered, by what the passes before it took."""

import math
import time

from sgrec_torchrec.serving.server.settings import ServerSettings

NEW_SHARE = 0.2
"""Of the newest pass in the measured seconds a user."""
PASS_SHARE = 0.4
"""Of the latency target that one pass may take, where users bring more than it takes
to begin one: who comes just after its start waits it out."""
HEADROOM = 0.6
"""Of the target that an answer may be expected to take: passes differ in length."""


class Pace:
    """What passes cost and when those that run end; call it from one thread alone."""

    def __init__(self, settings: ServerSettings, seconds_a_user: float) -> None:
        self.settings = settings
        self.target_s = settings.latency_ms / 1000
        self.seconds_a_user = seconds_a_user
        """Of one pass, while as many others run as usually do."""
        self._ends: dict[int, float] = {}
        self._num_begun = 0

    @property
    def num_free(self) -> int:
        """Threads without a pass."""
        return self.settings.passes - len(self._ends)

    def users_a_pass(self, num_waiting: int) -> int:
        """How many of those who wait the next pass takes; at least one.

        As many for each thread that is free, and no more than keep it short.
        """
        share = math.ceil(num_waiting / max(1, self.num_free))
        short = int(PASS_SHARE * self.target_s / self.seconds_a_user)
        return max(1, min(share, short, self.settings.max_batch))

    def begin(self, num_users: int) -> int:
        """A pass of so many users begins; its number."""
        self._num_begun += 1
        ends = time.monotonic() + num_users * self.seconds_a_user
        self._ends[self._num_begun] = ends
        return self._num_begun

    def end(self, number: int) -> None:
        """The pass has ended, however it did."""
        del self._ends[number]

    def measure(self, num_users: int, seconds: float) -> None:
        """A pass of so many users took so long."""
        newest = seconds / num_users
        self.seconds_a_user += NEW_SHARE * (newest - self.seconds_a_user)

    def seconds_to_answer(self, num_waiting: int) -> float:
        """Expected, for one who comes now, behind so many who wait.

        The pass that ends first, then those before the own one, which all threads
        share, then that.
        """
        starts_in = 0.0
        if not self.num_free:
            starts_in = max(0.0, min(self._ends.values()) - time.monotonic())
        users = self.users_a_pass(num_waiting + 1)
        num_at_once = max(1, self.num_free)
        num_before = max(0, num_waiting // users + 1 - num_at_once)
        passes = num_before / self.settings.passes + 1
        return starts_in + passes * users * self.seconds_a_user

    def is_late(self, num_waiting: int) -> bool:
        """Whether one who comes now would be answered too late."""
        return self.seconds_to_answer(num_waiting) > HEADROOM * self.target_s
