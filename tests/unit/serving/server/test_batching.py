"""What the batcher admits, in which passes it answers, and what a failure touches."""

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sgrec_torchrec.serving import recommender as recommender_module
from sgrec_torchrec.serving.encoder import UserState
from sgrec_torchrec.serving.history import check_history
from sgrec_torchrec.serving.server.batching import Batcher
from sgrec_torchrec.serving.server.checks import check_request
from sgrec_torchrec.serving.server.errors import RequestError
from sgrec_torchrec.serving.server.metrics import Metrics
from sgrec_torchrec.serving.server.served_model import ServedModel
from sgrec_torchrec.serving.server.settings import ServerSettings
from sgrec_torchrec.serving.server.state_cache import StateCache, num_bytes_of
from sgrec_torchrec.serving.server.wire import RecommendRequest

HOUR = 3_600_000.0


def in_loop(
    work: Callable[[Batcher], Awaitable[Any]], seconds_a_user: float = 1e-9, **fields
) -> Any:
    """``work`` over a batcher of these settings, which is stopped afterwards."""

    async def run() -> Any:
        settings = ServerSettings(**({"latency_ms": HOUR, "passes": 1} | fields))
        batcher = Batcher(settings, Metrics(), seconds_a_user)
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(run())


def asked(model: ServedModel, *history: str, **fields):
    request = RecommendRequest(history=list(history), **fields)
    return check_request(request, model, ServerSettings())


async def answers(batcher: Batcher, requests: list) -> list:
    return await asyncio.gather(
        *(batcher.ask(one) for one in requests), return_exceptions=True
    )


@dataclasses.dataclass(frozen=True)
class Meeting:
    """A recommender whose passes wait for each other."""

    real: Any
    barrier: threading.Barrier

    def encode(self, *words: Any, **more: Any) -> Any:
        self.barrier.wait(timeout=60)
        return self.real.encode(*words, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_passes_run_at_the_same_time_and_share_what_waits(served: ServedModel) -> None:
    meeting = Meeting(served.recommender, threading.Barrier(2))
    model = dataclasses.replace(served, recommender=meeting)
    requests = [asked(model, f"i{n}", k=3) for n in range(10)]

    async def work(batcher: Batcher):
        return await answers(batcher, requests), batcher.metrics.render().decode()

    found, text = in_loop(work, passes=2)
    expected = served.recommender.recommend([[f"i{n}"] for n in range(10)], 3)
    assert [one.item_ids for one in found] == [one.item_ids for one in expected]
    # Each thread gets half, and none waits for the other's pass to end.
    assert "sgrec_batch_users_count 2.0" in text
    assert "sgrec_batch_users_sum 10.0" in text


def test_requests_that_wait_share_a_pass(served: ServedModel) -> None:
    requests = [asked(served, f"i{n}", k=3) for n in range(10)]

    async def work(batcher: Batcher):
        found = await answers(batcher, requests)
        text = batcher.metrics.render().decode()
        return found, text

    found, text = in_loop(work, max_batch=4)
    expected = served.recommender.recommend([[f"i{n}"] for n in range(10)], 3)
    assert [one.item_ids for one in found] == [one.item_ids for one in expected]
    # 10 users at most 4 at a time: 4 + 4 + 2.
    assert "sgrec_batch_users_count 3.0" in text
    assert "sgrec_batch_users_sum 10.0" in text


def test_who_is_alone_waits_for_nobody(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, waits = asyncio.sleep, []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    one, other = asked(served, "i1", k=3), asked(served, "i2", k=3)

    async def work(batcher: Batcher) -> list[int]:
        counts = []
        for requests in ([one], [one], [one, other], [one], [one]):
            await answers(batcher, requests)
            counts.append(len(waits))
        return counts

    # After the pass of two, the next one waits for company.
    assert in_loop(work, batch_wait_ms=7.0) == [0, 0, 0, 1, 1]
    assert waits == [0.007]


def test_the_queue_is_bounded(served: ServedModel) -> None:
    requests = [asked(served, "i1", k=3) for _ in range(20)]
    found = in_loop(lambda batcher: answers(batcher, requests), max_queue=4)
    refused = [one for one in found if isinstance(one, RequestError)]
    # All 20 come before the first pass begins.
    assert len(refused) == 16
    assert {error.status for error in refused} == {429}
    assert refused[0].headers["Retry-After"] == "1"


@pytest.mark.parametrize(("passes", "held"), [(1, 3), (2, 9)])
def test_the_latency_target_bounds_the_wait(
    served: ServedModel, passes: int, held: int
) -> None:
    requests = [asked(served, "i1", k=3) for _ in range(20)]

    async def work(batcher: Batcher):
        found = await answers(batcher, requests)
        return found, await answers(batcher, requests[:1])

    found, again = in_loop(work, 400.0, latency_ms=HOUR, passes=passes)
    refused = [one for one in found if isinstance(one, RequestError)]
    # A pass of 3 users takes 1200 s, under 0.4 of 3600; answers may take 0.6 of it: one
    # pass of one thread, three of two, as the third begins when the first have ended.
    assert len(refused) == 20 - held
    assert refused[0].headers["Retry-After"] == "2400"
    assert again[0].item_ids


def test_an_idle_server_takes_one_however_slow_it_is(served: ServedModel) -> None:
    request = [asked(served, "i1", k=3)]
    (found,) = in_loop(lambda batcher: answers(batcher, request), 1e6)
    assert found.item_ids


def test_a_request_that_fails_does_not_take_others_along(served: ServedModel) -> None:
    good = [asked(served, f"i{n}", k=3) for n in range(3)]
    bad = asked(served, "i1", k=3)
    object.__setattr__(bad.history, "made_by", "another model")

    async def work(batcher: Batcher):
        found = await answers(batcher, [good[0], bad, *good[1:]])
        return found, await answers(batcher, good)

    found, again = in_loop(work)
    assert isinstance(found[1], ValueError)
    kept = [found[0], *found[2:]]
    assert [one.item_ids for one in kept] == [one.item_ids for one in again]


def test_a_history_is_checked_once(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(history: Any, *rest: Any, **named: Any) -> Any:
        calls.append(len(history.item_ids))
        return check_history(history, *rest, **named)

    monkeypatch.setattr(recommender_module, "check_history", counted)
    request = asked(served, "i1", "i2", k=3)
    (found,) = in_loop(lambda batcher: answers(batcher, [request]))
    assert len(found.item_ids) == 3
    assert calls == [2]


def test_stopping_answers_what_was_admitted(served: ServedModel) -> None:
    requests = [asked(served, f"i{n}", k=3) for n in range(9)]

    async def work(batcher: Batcher):
        asking = [asyncio.ensure_future(batcher.ask(one)) for one in requests]
        await asyncio.sleep(0)
        await batcher.stop()
        assert not batcher.is_alive
        return await asyncio.gather(*asking)

    found = in_loop(work, max_batch=2)
    assert all(len(one.item_ids) == 3 for one in found)


def test_a_pass_asks_one_model_alone(served: ServedModel, package) -> None:
    from sgrec_torchrec.serving.server.served_model import load_model

    other = load_model(package, generation=2)
    requests = [asked(model, "i1", k=3) for model in (served, other, other, served)]

    async def work(batcher: Batcher):
        found = await answers(batcher, requests)
        return found, batcher.metrics.render().decode()

    found, text = in_loop(work)
    assert len({tuple(one.item_ids) for one in found}) == 1
    assert "sgrec_batch_users_count 3.0" in text


def is_same(found: UserState | None, state: UserState) -> bool:
    """In every bit, and of the same model."""
    assert found is not None
    assert found.history.arrays()[0].tolist() == state.history.arrays()[0].tolist()
    is_of_model = found.made_by is state.made_by is found.history.made_by
    return is_of_model and found.past.equal(state.past)


def test_the_cache_keeps_to_its_bytes_and_drops_the_oldest(
    served: ServedModel,
) -> None:
    states = served.recommender.encode([["i1"], ["i2"], ["i3"]])
    size = num_bytes_of(states[0])
    cache = StateCache(2 * size)
    cache.put("a", states[0])
    cache.put("b", states[1])
    assert is_same(cache.get("a"), states[0])
    cache.put("c", states[2])
    assert cache.get("b") is None
    assert (len(cache), cache.num_bytes) == (2, 2 * size)
    cache.put("a", states[1])
    assert is_same(cache.get("a"), states[1])
    assert cache.num_bytes == 2 * size
    none = StateCache(size - 1)
    none.put("a", states[0])
    assert (len(none), none.num_bytes) == (0, 0)
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_batch": 0}, r"max_batch = 0 is outside \[1, 1024\]"),
        ({"latency_ms": float("nan")}, "latency_ms = nan is outside"),
        ({"port": 70_000}, "port = 70000 is outside"),
        ({"bearer": "short"}, "too short or has odd characters"),
        ({"bearer": "with space " * 3}, "too short or has odd characters"),
        ({"admin_bearer": "short"}, "the admin token is too short"),
        ({"admin_bearer": "a" * 16, "bearer": "a" * 16}, "that of the clients"),
    ],
)
def test_settings_are_bounded(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerSettings(**fields)
    made = ServerSettings(
        bearer="a-secret-of-clients", admin_bearer="a-secret-of-the-admin"
    )
    for told in (repr(made), repr(made.to_plain())):
        assert "a-secret" not in told
