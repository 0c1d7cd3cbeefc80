"""Workers that are killed between two calls are not asked again."""

import time

from sgrec_torchrec.distributed.workers import Workers


def test_an_idle_worker_that_was_killed_is_replaced() -> None:
    with Workers(1) as workers:
        assert list(workers.map(time.sleep, [(0,), (0,)])) == [(0, None), (1, None)]
        (idle,) = workers._idle
        idle.process.kill()
        idle.process.join()
        assert list(workers.map(time.sleep, [(0,)])) == [(0, None)]
        assert workers._idle != [idle]


def test_workers_end_with_their_context() -> None:
    with Workers(1) as workers:
        list(workers.map(time.sleep, [(0,)]))
        (idle,) = workers._idle
    assert not idle.process.is_alive()
