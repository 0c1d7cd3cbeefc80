"""What a pass takes, and when one more would be answered."""

import pytest

from sgrec_torchrec.serving.server import pace as module
from sgrec_torchrec.serving.server.pace import Pace
from sgrec_torchrec.serving.server.settings import ServerSettings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the first entry."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def make_pace(seconds_a_user: float = 0.01, **fields) -> Pace:
    settings = {"passes": 2, "latency_ms": 1000.0, "max_batch": 32} | fields
    return Pace(ServerSettings(**settings), seconds_a_user)


def test_a_pass_takes_a_share_for_each_free_thread(clock) -> None:
    pace = make_pace()
    assert pace.users_a_pass(9) == 5
    pace.begin(5)
    assert pace.users_a_pass(4) == 4


def test_a_pass_takes_no_more_than_keeps_it_short(clock) -> None:
    # 0.4 of a second holds 40 users of 10 ms, 4 of 100 ms, and none of 3 s.
    assert make_pace(max_batch=100).users_a_pass(200) == 40
    assert make_pace(0.1).users_a_pass(200) == 4
    assert make_pace(3.0).users_a_pass(200) == 1
    assert make_pace(max_batch=8).users_a_pass(200) == 8


def test_an_idle_server_answers_in_one_pass(clock) -> None:
    assert make_pace().seconds_to_answer(0) == pytest.approx(0.01)


def test_who_comes_while_all_run_waits_for_the_first_to_end(clock) -> None:
    pace = make_pace()
    pace.begin(10)
    clock[0] += 0.05
    pace.begin(20)
    # 0.05 s are left of the first; four who wait go with the new one.
    assert pace.seconds_to_answer(4) == pytest.approx(0.05 + 5 * 0.01)
    # A pass that takes longer than expected may end at any time.
    clock[0] += 1.0
    assert pace.seconds_to_answer(4) == pytest.approx(5 * 0.01)


def test_those_before_go_in_passes_that_threads_share(clock) -> None:
    pace = make_pace(0.1)
    for _ in range(2):
        pace.begin(1)
    clock[0] += 0.1
    # Passes of 4: two are before the own one, and take both threads 0.4 s.
    assert pace.seconds_to_answer(8) == pytest.approx(0.4 + 0.4)
    # Both threads begin at once where both are free.
    assert make_pace(0.1).seconds_to_answer(7) == pytest.approx(0.4)


def test_late_is_what_would_take_most_of_the_target(clock) -> None:
    pace = make_pace(0.099)
    # Passes of 4 take .396 s. Two begin at once: who is in the third is answered after
    # one and a half of them, in the fourth after two.
    assert not pace.is_late(11)
    assert pace.is_late(12)


def test_the_newest_passes_count_most(clock) -> None:
    pace = make_pace(0.1)
    pace.measure(4, 0.8)
    assert pace.seconds_a_user == pytest.approx(0.12)
    first = pace.begin(2)
    assert pace.num_free == 1
    pace.end(first)
    assert pace.num_free == 2
