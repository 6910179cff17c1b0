"""Parts of a run: each second counts for one of them, and afterwards every function is what it was."""

import importlib
import threading
from collections.abc import Callable

import pytest

import spatl.rounds.client_evaluation
import spatl.training.evaluate
from spatl.perf.parts import OTHER, PARTS, PartsClock


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


def test_what_a_function_takes_inside_another_counts_once():
    """Train for 2 s, of which evaluating takes 0.5 s, and 0.25 s of that are training again; then 1 s of nothing known.

    Training has 2 - 0.5 + 0.25 = 1.75 s, evaluation 0.5 - 0.25 = 0.25 s, other 1 s.
    """
    time = Time()
    clock = PartsClock(time)
    train_again = clock.timed("training", lambda: time.spend(0.25))

    def body() -> None:
        time.spend(0.25)
        train_again()

    evaluate = clock.timed("evaluation", body)

    def train() -> str:
        time.spend(1.0)
        evaluate()
        time.spend(0.5)
        return "trained"

    assert clock.timed("training", train)() == "trained"
    time.spend(1.0)
    parts = clock.parts_of(time.now)
    assert (parts["training"], parts["evaluation"], parts[OTHER]) == (1.75, 0.25, 1.0)
    assert sum(parts.values()) == time.now
    assert parts.keys() == {*PARTS, OTHER}


def test_what_raises_counts_too():
    time = Time()
    clock = PartsClock(time)

    def fail() -> None:
        time.spend(3.0)
        raise ValueError

    outer = clock.timed("sums", clock.timed("state", fail))
    with pytest.raises(ValueError):  # noqa: PT011  # of this test's own
        outer()
    assert clock.seconds == {"state": 3.0, "sums": 0.0}
    clock.timed("books", lambda: time.spend(1.0))()
    assert clock.seconds["books"] == 1.0


def functions() -> dict[str, Callable[..., object]]:
    found = {}
    for references in PARTS.values():
        for reference in references:
            module, _, name = reference.partition(":")
            value: object = importlib.import_module(module)
            for each in name.split("."):
                value = getattr(value, each)
            assert callable(value)
            found[reference] = value
    return found


@pytest.mark.slow
def test_every_part_is_of_functions_that_are_there_and_each_is_put_back():
    before, imported = functions(), spatl.rounds.client_evaluation.evaluate
    assert imported is spatl.training.evaluate.evaluate
    with PartsClock().watching():
        during = functions()
        assert all(during[name] is not before[name] for name in before)
        assert spatl.rounds.client_evaluation.evaluate is spatl.training.evaluate.evaluate
        assert spatl.rounds.client_evaluation.evaluate is not imported
    assert functions() == before
    assert spatl.rounds.client_evaluation.evaluate is imported


def test_threads_that_wait_for_one_another_count_what_each_did_itself():
    """The first is half through when the second is called, and what it waits is none of its parts."""
    clocks = {name: Time() for name in ("first", "second")}
    parts = PartsClock(lambda: clocks[threading.current_thread().name]())
    waits, goes_on = threading.Semaphore(0), threading.Semaphore(0)

    def train(name: str) -> None:
        clocks[name].spend(2.0)
        if name == "first":
            waits.release()
            assert goes_on.acquire(timeout=60)
        clocks[name].spend(1.0)

    def round_(name: str) -> None:
        clocks[name].spend(0.5)
        parts.timed("training", train)(name)

    work = parts.timed("model", round_)
    threads = [threading.Thread(target=work, args=(name,), name=name) for name in ("first", "second")]
    threads[0].start()
    assert waits.acquire(timeout=60)
    threads[1].start()
    threads[1].join(60)
    goes_on.release()
    threads[0].join(60)
    assert parts.seconds == {"training": 6.0, "model": 1.0}
