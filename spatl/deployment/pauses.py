"""Pauses of a program that asks for work again and again: short while work comes, as long as Flower's while none does.

Flower 1.41's SuperNode asks for messages every three seconds, looks for its reply every half second, and its SuperExec
asks for work once a second: a round of a small federation is mostly these pauses. Here each begins with a tenth of a
second and grows with the time waited, so that what comes late is noticed late by a share of its time, and what is idle
asks as seldom as it did.
"""

import time
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.1
"""The first pause, in seconds."""


class Pauses:
    """Pauses that grow, up to those that were asked for.

    Args:
        growth: How many times the last the next one is, above 1.
        sleep: Waits for so many seconds.
    """

    def __init__(self, growth: float, sleep: Callable[[float], object] = time.sleep) -> None:
        self._growth = growth
        self._sleep_for = sleep
        self._asked = self._next = FIRST_SECONDS

    def begin_anew(self) -> None:
        """Have the next pause be a short one: there was work."""
        self._next = FIRST_SECONDS

    def sleep(self, seconds: float) -> None:
        """Pause, at most so many seconds; where these are others than the last time, there was work in between."""
        if seconds != self._asked:
            self._asked = seconds
            self.begin_anew()
        pause = min(seconds, self._next)
        self._next = pause * self._growth
        self._sleep_for(pause)
