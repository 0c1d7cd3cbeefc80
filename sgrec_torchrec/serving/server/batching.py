"""Requests of many users -> passes of the network, some at a time, each in a thread.

While all passes run, requests wait; the next one takes what waits. Who would wait
beyond the latency target, by the pace that is measured, is turned away at once.
All but the passes runs in the event loop; they share the cache, which has a lock.
"""

import asyncio
import logging
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sgrec_torchrec.serving.recommender import Recommended
from sgrec_torchrec.serving.server.checks import Asked
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.metrics import Metrics
from sgrec_torchrec.serving.server.pace import Pace
from sgrec_torchrec.serving.server.served_model import ServedModel
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.state_cache import StateCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An admitted request."""

    asked: Asked
    done: asyncio.Future[Recommended]
    admitted_s: float


class Batcher:
    """Start it in a running event loop; ``ask`` from that loop alone."""

    def __init__(
        self, settings: ServerSettings, metrics: Metrics, seconds_a_user: float
    ) -> None:
        self.settings, self.metrics = settings, metrics
        self.pace = Pace(settings, seconds_a_user)
        self.cache = StateCache(settings.state_cache_mib << 20)
        self._threads = ThreadPoolExecutor(settings.passes, "recommender")
        self._free = asyncio.Semaphore(settings.passes)
        self._waiting: deque[Job] = deque()
        self._open: set[Job] = set()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_company = False

    def start(self) -> None:
        """Take requests from now on."""
        self._task = asyncio.create_task(self._serve(), name="batches")

    @property
    def is_alive(self) -> bool:
        """Whether passes are made."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Answer what was admitted, then end."""
        await self._settled(list(self._open))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._threads.shutdown()

    async def ask(self, asked: Asked) -> Recommended:
        """The user's list, once a pass has made it.

        Raises:
            RequestError: 429 with Retry-After, where it would take too long.
        """
        self.check_room()
        loop = asyncio.get_running_loop()
        job = Job(asked, loop.create_future(), time.monotonic())
        self._open.add(job)
        self._waiting.append(job)
        self._arrived.set()
        self.metrics.waiting.set(len(self._open))
        try:
            return await job.done
        finally:
            self._open.discard(job)
            self.metrics.waiting.set(len(self._open))

    async def drain(self, model: ServedModel) -> None:
        """Return when no admitted request asks this model."""
        await self._settled([job for job in self._open if job.asked.model is model])

    @staticmethod
    async def _settled(jobs: list[Job]) -> None:
        if jobs:
            await asyncio.wait([job.done for job in jobs])

    def check_room(self) -> None:
        """Whether one more would be answered in time.

        Raises:
            RequestError: 429 with Retry-After, where it would not.
        """
        # An idle server always takes one, else a slow one would take none.
        is_late = bool(self._open) and self.pace.is_late(len(self._waiting))
        if is_late or len(self._waiting) >= self.settings.max_queue:
            raise self._refusal()

    def _refusal(self) -> RequestError:
        self.metrics.refused.inc()
        seconds = max(1, math.ceil(self.pace.seconds_to_answer(len(self._waiting))))
        return RequestError(
            429,
            f"the server is at its capacity: try again in {seconds} s",
            {"Retry-After": str(seconds)},
        )

    async def _serve(self) -> None:
        # A pass that ends by an error of ours ends them all: the server is unhealthy.
        async with asyncio.TaskGroup() as passes:
            while True:
                await self._free.acquire()
                await self._arrived.wait()
                if self._has_company and len(self._waiting) < self.settings.max_batch:
                    await asyncio.sleep(self.settings.batch_wait_ms / 1000)
                jobs = self._take()
                if jobs:
                    number = self.pace.begin(len(jobs))
                    passes.create_task(self._run(jobs, number))
                else:
                    self._free.release()

    async def _run(self, jobs: list[Job], number: int) -> None:
        await self._pass(jobs)
        # A client that is alone would wait for nobody.
        self._has_company = len(jobs) > 1 or bool(self._waiting)
        self.pace.end(number)
        self._free.release()

    def _take(self) -> list[Job]:
        """The oldest requests of one model; who waited too long is turned away."""
        jobs: list[Job] = []
        # As much to each thread that is free.
        most = self.pace.users_a_pass(len(self._waiting))
        oldest_s = time.monotonic() - self.settings.latency_ms / 1000
        while self._waiting and len(jobs) < most:
            job = self._waiting[0]
            if jobs and job.asked.model is not jobs[0].asked.model:
                break
            self._waiting.popleft()
            if job.done.done():
                continue
            if job.admitted_s < oldest_s and len(self._open) > 1:
                job.done.set_exception(self._refusal())
                continue
            jobs.append(job)
        if not self._waiting:
            self._arrived.clear()
        return jobs

    async def _pass(self, jobs: list[Job]) -> None:
        """Answer the jobs; a pass that fails is made again, user by user."""
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        asked = [job.asked for job in jobs]
        running = loop.run_in_executor(self._threads, self._answer, asked)
        await asyncio.wait([running])
        error = running.exception()
        if error is None:
            self._measure(len(jobs), time.perf_counter() - start)
            for job, found in zip(jobs, running.result(), strict=True):
                if not job.done.done():
                    job.done.set_result(found)
        elif len(jobs) > 1:
            logger.error("a pass failed; users are asked one by one", exc_info=error)
            for job in jobs:
                await self._pass([job])
        elif not jobs[0].done.done():
            jobs[0].done.set_exception(error)

    def _measure(self, num_users: int, seconds: float) -> None:
        self.pace.measure(num_users, seconds)
        metrics = self.metrics
        metrics.user_seconds.set(self.pace.seconds_a_user)
        metrics.batch_users.observe(num_users)
        metrics.batch_seconds.observe(seconds)
        metrics.cache_bytes.set(self.cache.num_bytes)
        metrics.cache_users.set(len(self.cache))

    def _answer(self, asked: list[Asked]) -> list[Recommended]:
        """In a thread of its own: all are of one model."""
        found: dict[int, Recommended] = {}
        recommender = asked[0].model.recommender
        for with_evidence in (True, False):
            users = [
                user
                for user, one in enumerate(asked)
                if one.with_evidence is with_evidence
            ]
            if not users:
                continue
            group = [asked[user] for user in users]
            known = [self.cache.get(one.key) for one in group]
            states = recommender.encode(
                [one.history for one in group], known, with_evidence=with_evidence
            )
            for one, old, state in zip(group, known, states, strict=True):
                is_of_model = old is not None and old.made_by is state.made_by
                how = "afresh"
                if old is state:
                    how = "known"
                elif is_of_model and old and state.history.starts_with(old.history):
                    how = "grown"
                self.metrics.states.labels(how).inc()
                self.cache.put(one.key, state)
            lists = recommender.decode(
                states,
                [one.k for one in group],
                filters=[one.filters for one in group],
                with_evidence=with_evidence,
            )
            found |= zip(users, lists, strict=True)
        return [found[user] for user in range(len(asked))]
