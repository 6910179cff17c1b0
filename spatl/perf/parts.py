"""Parts of what a run takes, told apart by the functions that do them.

While it is watched, each of these functions is wrapped: what it takes counts for its part, less what functions of other
parts take inside it. So each second counts once, and the parts and `other` sum up to the whole.
"""

import functools
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "training": ("spatl.training.local:train_", "spatl.training.together:train_together_"),
    "evaluation": ("spatl.training.evaluate:evaluate",),
    "recalibration": ("spatl.training.evaluate:recalibrate_",),
    "selection": ("spatl.rounds.client:_chosen",),
    "encode": (
        "spatl.wire.update:pack_update", "spatl.wire.update:pack_update_with_memory", "spatl.rounds.server:open_round",
    ),
    "decode": (
        "spatl.wire.update:unpack_update", "spatl.wire.download:unpack_download", "spatl.rounds.client:receive",
    ),
    "state": (
        "clients.store:DirectoryStore.load", "clients.store:DirectoryStore.save",
        "clients.shared_store:SharedStore.load", "clients.shared_store:SharedStore.save",
        "spatl.runs.checkpoint:save_checkpoint", "spatl.runs.states:settle_states",
    ),
    "model": ("spatl.rounds.client:train_round", "spatl.rounds.client_evaluation:evaluate_round"),
    "messages": (
        "server.grids:InProcessGrid.pull_messages", "server.grids:InProcessGrid._call", "server.exchange:Exchange.ask",
    ),
    "sums": ("spatl.rounds.server:close_round", "spatl.rounds.aggregation:Aggregator.add",
             "spatl.rounds.cosines:Sketches.add"),
    "books": ("server.recorder:Recorder.finish_round", "server.traffic:message_traffic"),
}  # fmt: skip
"""Functions of each part, as `module:name`. `model` is what a client does around its training: the network is loaded,
its update is taken, its control variate follows."""

LOCAL_PARTS: Final = ("training", "evaluation", "recalibration")
"""Parts that a client's examples take; the others are around them."""

OTHER: Final = "other"
"""Part of what no function of `PARTS` does."""

_OWN: Final = frozenset({"spatl", "server", "clients", "agents"})


class PartsClock:
    """Clock of parts.

    Args:
        now: Seconds that have passed: by default those of the thread that asks, on a CPU, for clients of a group wait
            for one another.

    Attributes:
        seconds: What each part has taken so far.
    """

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self._now = now
        self._here = threading.local()
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and counts what it takes for a part."""

        @functools.wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            # Seconds of the parts inside each function that is at work in this thread.
            inner: list[float] = self._here.__dict__.setdefault("inner", [])
            started = self._now()
            inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                taken, inside = self._now() - started, inner.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + taken - inside
                if inner:
                    inner[-1] += taken

        return counted

    def parts_of(self, whole: float) -> dict[str, float]:
        """Return the seconds of each part, and of what is left of so many in `OTHER`."""
        known = {part: self.seconds.get(part, 0.0) for part in PARTS}
        return {**known, OTHER: whole - sum(known.values())}

    @contextmanager
    def watching(self, parts: Mapping[str, tuple[str, ...]] = PARTS) -> Iterator[None]:
        """Wrap the functions of all parts, wherever our modules have them, until the context ends."""
        changed: list[tuple[Any, str, Any]] = []
        try:
            for part, references in parts.items():
                for reference in references:
                    module, _, name = reference.partition(":")
                    owner, function = _found(importlib.import_module(module), name)
                    wrapped = self.timed(part, function)
                    for holder, attribute in [(owner, name.rpartition(".")[2]), *_importers(function)]:
                        if (holder, attribute) not in [each[:2] for each in changed]:
                            changed.append((holder, attribute, function))
                            setattr(holder, attribute, wrapped)
            yield
        finally:
            for holder, attribute, function in reversed(changed):
                setattr(holder, attribute, function)


def _found(module: ModuleType, name: str) -> tuple[Any, Callable[..., Any]]:
    """Return what holds a function or method, and the function."""
    owner: Any = module
    *path, last = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    return owner, getattr(owner, last)


def _importers(function: object) -> list[tuple[ModuleType, str]]:
    """Return the modules of ours that have imported a function by its name, and what they call it."""
    ours = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in _OWN]
    return [(module, name) for module in ours for name, value in list(vars(module).items()) if value is function]
