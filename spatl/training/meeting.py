"""Meeting of clients that are trained as one program: each works in a thread of its own, and one thread at a time.

A client's round goes as ever until its training. There it waits; once all of its group wait, they are trained together
(`spatl.training.together`), and each goes on from there. Whose turn it is, is fixed by the order in which they were
called, and the global random states are each thread's own: nothing depends on how a system schedules threads.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from spatl.errors import told
from spatl.seeding import global_states, set_global_states
from spatl.training.local import TrainingResult
from spatl.training.together import Networks, Training, train_together_

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HERE = threading.local()


def train_here_(training: Training, *, alone: bool = False) -> TrainingResult:
    """Train a client: beside the others of a meeting where this is the thread of one, and by itself otherwise.

    Args:
        training: What is to be done.
        alone: Whether it is by itself in any case.
    """
    seat: _Seat[Any] | None = getattr(_HERE, "seat", None)
    return training.alone() if seat is None or alone else seat.wait(training)


class Meeting(Generic[T]):
    """Meeting of at most so many clients, again and again.

    Args:
        num_seats: How many, 1 at least.
    """

    def __init__(self, num_seats: int) -> None:
        self._seats = [_Seat[T](number) for number in range(num_seats)]
        self._networks = Networks()

    def hold(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Make some calls, no more than there are seats, and return what they return, in their order.

        Raises:
            Exception: What a call raises; of several the first's.
        """
        if len(calls) > len(self._seats):
            raise ValueError(f"{len(calls)} calls for {len(self._seats)} seats")
        present, states = self._seats[: len(calls)], global_states()
        for seat, call in zip(present, calls, strict=True):
            seat.begin(call)
            set_global_states(states)
        while waiting := [seat for seat in present if seat.training is not None]:
            self._train(waiting)
            for seat in waiting:
                seat.go_on()
                set_global_states(states)
        for seat in present:
            if seat.error is not None:
                raise seat.error
        return [seat.returned() for seat in present]

    def _train(self, waiting: Sequence["_Seat[T]"]) -> None:
        """Train those that wait, and leave each its result, or what went wrong with it.

        Where one's training fails, each is trained by itself, from where it was: it costs the others nothing but time.
        """
        trainings = [seat.training for seat in waiting if seat.training is not None]
        orders = [training.generator.get_state() for training in trainings]
        results: list[_Result]
        try:
            results = list(train_together_(trainings, self._networks))
        except Exception as error:
            logger.warning("clients of a group train by themselves, for the training of one failed: %s", told(error))
            results = [_alone(training, order) for training, order in zip(trainings, orders, strict=True)]
        for seat, result in zip(waiting, results, strict=True):
            seat.result, seat.training = result, None

    def close(self) -> None:
        """End all threads; a call that is under way is not finished."""
        for seat in self._seats:
            seat.end()


_Result = tuple[TrainingResult, float] | Exception
"""What a training came to, and the seconds that it took; or what went wrong."""


def _alone(training: Training, order: Tensor) -> _Result:
    """Train a client by itself, whose generator begins in a state again."""
    training.generator.set_state(order)
    started = time.perf_counter()
    try:
        return training.alone(), time.perf_counter() - started
    except Exception as error:
        return error


class _Ended(BaseException):
    """The meeting is over: nobody waits for this call."""


class _Seat(Generic[T]):
    """A thread that makes one call after another, and runs only while whoever called it waits."""

    def __init__(self, number: int) -> None:
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._call: Callable[[], T] | None = None
        self._returned: list[T] = []
        self._over = False
        self.training: Training | None = None
        self.result: _Result | None = None
        self.error: Exception | None = None
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._work, name=f"client-{number}", daemon=True)
        self._thread.start()

    def begin(self, call: Callable[[], T]) -> None:
        """Make a call, until it waits for a training or is over."""
        self._call, self.error = call, None
        self._returned.clear()
        self.go_on()

    def go_on(self) -> None:
        """Let the thread run until it waits for a training or is over."""
        self._turn.release()
        self._back.acquire()

    def returned(self) -> T:
        """Return what the call has returned."""
        return self._returned.pop()

    def end(self) -> None:
        """End the thread, wherever it waits."""
        if self._thread.is_alive():
            self._over = True
            self.go_on()
            self._thread.join()

    def _work(self) -> None:
        _HERE.seat = self
        torch.set_num_threads(self._num_threads)  # each thread has its own number
        while True:
            self._turn.acquire()
            if self._over:
                break
            assert self._call is not None
            try:
                self._returned.append(self._call())
            except _Ended:
                break
            except Exception as error:
                self.error = error
            self._call = None
            self._back.release()
        self._back.release()

    def wait(self, training: Training) -> TrainingResult:
        """Wait, in the seat's own thread, until a training is done; return its result.

        Raises:
            Exception: What went wrong in it.
        """
        states, started = global_states(), time.perf_counter()
        self.training = training
        self._back.release()
        self._turn.acquire()
        set_global_states(states)
        if self._over:
            raise _Ended
        result, self.result = self.result, None
        if isinstance(result, Exception):
            raise result
        assert result is not None
        trained, seconds = result
        return replace(trained, waited=time.perf_counter() - started - seconds)
