"""A word to end is heard once, by all ranks at the same question."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch

from sgrec_torchrec.distributed import termination
from sgrec_torchrec.distributed.termination import (
    TerminatedError,
    Termination,
    ToldError,
    stop_if_told,
)


class FakeWork:
    """An all-reduce on its way: answers once it is waited for."""

    def __init__(self, word: torch.Tensor, answer: int) -> None:
        self.word, self.answer, self.is_done = word, answer, False

    def wait(self) -> None:
        self.is_done = True
        self.word.fill_(max(int(self.word), self.answer))


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What another rank answers to each question, in order; the works are added."""
    answers: list[int] = []
    works: list[FakeWork] = []

    def all_reduce(word: torch.Tensor, *_: object, async_op: bool = False) -> FakeWork:
        works.append(FakeWork(word, answers.pop(0)))
        if not async_op:
            works[-1].wait()
        return works[-1]

    monkeypatch.setattr(termination, "_has_peers", lambda: True)
    monkeypatch.setattr(termination.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(termination, "works", works, raising=False)
    return answers


@pytest.fixture(autouse=True)
def handler() -> Iterator[list[int]]:
    """Signals that are served as they were before, in place of the end of pytest."""
    served: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: served.append(number))
    yield served
    signal.signal(signal.SIGTERM, before)


def test_a_loop_that_nobody_ends_leaves_the_signal_as_it_was(handler) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Termination() as told:
        assert signal.getsignal(signal.SIGTERM) is not before
        assert not told.poll()
        assert not told.ask()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_word_is_noted_and_the_second_served_as_before(handler) -> None:
    with Termination() as told:
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.poll()
        assert told.ask()
        assert handler == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert handler == [signal.SIGTERM]


def test_outside_of_the_main_thread_nothing_is_listened_to() -> None:
    said: list[bool] = []

    def work() -> None:
        with Termination() as told:
            said.append(told.ask())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [False]


def test_a_poll_tells_what_the_ranks_knew_at_the_one_before(others: list[int]) -> None:
    others += [0, 1, 0]
    with Termination() as told:
        assert [told.poll(), told.poll(), told.poll()] == [False, False, True]


def test_the_word_of_this_rank_travels_with_its_question(others: list[int]) -> None:
    others += [0, 0]
    with Termination() as told:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not told.poll()
        assert told.poll()


def test_asking_tells_what_is_known_now_and_leaves_no_question(
    others: list[int],
) -> None:
    others += [0, 1, 0, 0]
    with Termination() as told:
        told.poll()
        assert told.ask()
        assert all(one.is_done for one in termination.works)  # type: ignore[attr-defined]
        # What was asked before the answer is not told twice.
        assert not told.poll()


def test_long_work_stops_inside_of_a_loop_that_was_told_alone() -> None:
    stop_if_told()
    with Termination() as outer:
        with Termination():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(ToldError):
                stop_if_told()
        stop_if_told()
        assert not outer.is_told
    stop_if_told()


@pytest.mark.parametrize("is_main", [True, False])
def test_leaving_tells_once_where_the_state_stands(
    monkeypatch: pytest.MonkeyPatch, capsys, *, is_main: bool
) -> None:
    monkeypatch.setattr(termination, "is_main_rank", lambda: is_main)
    with pytest.raises(TerminatedError) as left:
        Termination().leave(7)
    assert left.value.code == 143
    said = capsys.readouterr().out
    assert ("the state after step 7 is kept" in said) == is_main
