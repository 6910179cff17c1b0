"""Parser of arguments: argparse's, with one line for a mistake, and the setting that a flag was meant to be.

Settings are no flags here, as there are a hundred of them: `--rounds 5` is answered with `--set rounds=5`. Options are
never abbreviated, or `--seed 5` would be taken for `--seeds 5`.
"""

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from spatl.errors import did_you_mean
from spatl.terminal.screen import Screen

_USUAL_NAMES: Mapping[str, str] = {
    "algorithm": "method", "alg": "method", "strategy": "method", "num-rounds": "rounds", "num-server-rounds": "rounds",
    "comm-round": "rounds", "random-seed": "seed",
    "data": "data.name", "dataset": "data.name", "datasets": "data.name", "data-dir": "data.options.path",
    "data-path": "data.options.path", "datadir": "data.options.path",
    "partition": "partition.name", "partitioner": "partition.name", "clients": "partition.num_clients",
    "n-clients": "partition.num_clients", "num-supernodes": "partition.num_clients", "beta": "partition.alpha",
    "model": "model.name", "net": "model.name", "arch": "model.name", "network": "model.name",
    "lr": "training.learning_rate", "learning-rate": "training.learning_rate", "epochs": "training.local_epochs",
    "epoch": "training.local_epochs", "steps": "training.local_steps", "bs": "training.batch_size",
    "batch": "training.batch_size", "wd": "training.weight_decay", "mu": "training.proximal_mu",
    "cuda": "training.device", "gpu": "training.device", "fp16": "training.precision", "amp": "training.precision",
    "server-lr": "server.learning_rate", "fraction": "server.fraction_train", "frac": "server.fraction_train",
    "fraction-fit": "server.fraction_train", "sample-fraction": "server.fraction_train",
    "codec": "wire.uplink", "budget": "selection.keep_ratio", "gpus": "resources.gpus_per_client",
    "cpus": "resources.cpus_per_client", "tensorboard": "report.tensorboard", "noise": "privacy.noise_multiplier",
}  # fmt: skip
_USUAL_OPTIONS: Mapping[str, str] = {
    "output": "--out", "output-dir": "--out", "outdir": "--out", "out-dir": "--out", "logdir": "--out", "dir": "--out",
    "o": "--out",
    "override": "--set", "overrides": "--set", "num-workers": "--workers", "jobs": "--workers", "continue": "--resume",
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, and that never takes the beginning of an option for the option."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})
        self.set_defaults(parser=self)  # the parser of the command that was given, at last

    def parse_args(  # type: ignore[override]  # of its overloads, the one that makes a Namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse all arguments; one that nothing takes ends the program with the closest thing that would be taken."""
        given = list(sys.argv[1:] if args is None else args)
        options, unknown = self.parse_known_args(given, namespace)
        if unknown:
            command = getattr(options, "parser", self)
            command.error(_advice(unknown, given, command, settings=hasattr(options, "overrides")))
        return options

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and one line."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} ({self.prog} --help)\n")

    def flags(self) -> list[str]:
        """Long options that it takes."""
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


def _advice(unknown: Sequence[str], given: Sequence[str], parser: Parser, *, settings: bool) -> str:
    """Return the advice on arguments that nothing takes: on all that are settings, or on the first."""
    meant: dict[str, str] = {}
    for text, value in _flags_with_values(unknown, given):
        name = text.lstrip("-")
        usual = _USUAL_OPTIONS.get(name.replace("_", "-"))
        if usual in parser.flags():
            return f"{text} is called {usual} here"
        keys = _settings_called(name) if settings else []
        if not keys:
            return f"unknown option {text}{did_you_mean(text, parser.flags())}"
        meant[text] = " or ".join(
            f"--set {key}=VALUE" if value is None else f"--set {shlex.quote(f'{key}={value}')}" for key in keys
        )
    if meant:
        are = "is a setting" if len(meant) == 1 else "are settings"
        return f"{' and '.join(meant)} {are}: use {' '.join(meant.values())}"
    with_value = [text for text in unknown if settings and "=" in text]
    return f"unexpected argument {unknown[0]}" + (f": use --set {shlex.quote(with_value[0])}" if with_value else "")


def _flags_with_values(unknown: Sequence[str], given: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Return the unknown arguments that are flags, each with the value after it: `--rounds 5` or `--rounds=5`."""
    for argument in unknown:
        if argument.startswith("-") and len(argument) > 1:
            flag, equals, value = argument.partition("=")
            if equals:
                yield flag, value
                continue
            after = given[given.index(argument) + 1 :] if argument in given else []
            yield flag, after[0] if after and (not after[0].startswith("--")) else None


def _settings_called(name: str) -> list[str]:
    """Return the keys a flag may mean: the key itself, a usual name for it, or every key that ends with the name."""
    from spatl.config.settings import setting_keys  # with which pydantic comes, that `spatl predict` does without

    plain = name.replace("-", "_")
    keys = setting_keys()
    if plain in keys:
        return [plain]
    usual = _USUAL_NAMES.get(name.replace("_", "-"))
    return [usual] if usual else [key for key in keys if key.rpartition(".")[2] == plain]


def add_overrides(parser: Parser, what: str = "override a setting") -> None:
    """Give a parser the option `--set`."""
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help=what)


def by_reference(reference: str) -> Callable[[argparse.Namespace], None]:
    """Return a command of a module that is imported when it is called: another package's, or one that few need."""

    def command(options: argparse.Namespace) -> None:
        module, _, name = reference.partition(":")
        getattr(importlib.import_module(module), name)(options, Screen())

    return command
