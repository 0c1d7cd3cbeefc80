"""SIGTERM -> one decision of all ranks at the same point: keep the state, then end.

A loop asks between its steps; what takes long inside of one, as a validation does, asks
between its parts by ``stop_if_told``.
"""

import signal
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from sgrec_torchrec.distributed.main_rank import is_main_rank


class ToldError(Exception):
    """What takes long inside of a loop's step gives up: the loop was told to end."""


class TerminatedError(SystemExit):
    """All ranks end, each with its state kept; the code is that of SIGTERM."""


class Termination:
    """Whether any rank was told to end. All ranks ask together, in the same order.

    While it is entered, SIGTERM only leaves word; a second one ends the process as if
    there were no such thing. Outside of the main thread nothing is listened to.
    """

    def __init__(self) -> None:
        self.is_told = False
        self._asked: tuple[Tensor, Any] | None = None
        self._before: Any = None
        self._outer: Any = None

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        self._outer = _LOOP.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _LOOP.reset(self._outer)
        self._restore()

    def poll(self) -> bool:
        """What the ranks knew at the call before; this call's question travels on.

        So a step does not wait for the slowest rank's answer.
        """
        if not _has_peers():
            return self.is_told
        asked = self._asked
        word = torch.tensor([int(self.is_told)])
        self._asked = (word, dist.all_reduce(word, dist.ReduceOp.MAX, async_op=True))
        return asked is not None and _answer(asked)

    def ask(self) -> bool:
        """What the ranks know now; no question is left on its way."""
        if self._asked is not None:
            _answer(self._asked)
            self._asked = None
        if not _has_peers():
            return self.is_told
        word = torch.tensor([int(self.is_told)])
        dist.all_reduce(word, dist.ReduceOp.MAX)
        return bool(word)

    def leave(self, step: int) -> NoReturn:
        """End, once the state after ``step`` is kept.

        Raises:
            TerminatedError: always.
        """
        if is_main_rank():
            print(
                f"ended by SIGTERM: the state after step {step} is kept, --resume goes "
                "on from it",
                flush=True,
            )
        raise TerminatedError(128 + signal.SIGTERM)

    def _note(self, *_: object) -> None:
        self.is_told = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


_LOOP: ContextVar[Termination | None] = ContextVar("loop", default=None)
"""Of the loop that is running, if any."""


def stop_if_told() -> None:
    """Asked between the parts of long work, by all ranks equally often.

    Outside of a loop nothing is asked.

    Raises:
        ToldError: on all ranks at the same call, once any of them was told to end.
    """
    loop = _LOOP.get()
    if loop is not None and loop.poll():
        raise ToldError


def _has_peers() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def _answer(asked: tuple[Tensor, Any]) -> bool:
    word, work = asked
    work.wait()
    return bool(word)
