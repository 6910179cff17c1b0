"""Command `spatl deploy server`: the machine that runs a federation, with the keys of `spatl deploy init`.

The SuperLink is `server.deployment.superlink`'s, which shows the network its Fleet API alone.
"""

import logging
import os
import secrets
import shlex
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from server.deployment.adding import of_all_clients
from server.deployment.begun import check_begun, note_begun
from server.deployment.control import LinkLost, started_superlink
from server.deployment.following import Following
from server.deployment.keys import read_public_keys
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, settings_to_go_on
from spatl.deployment.processes import past_proxies
from spatl.deployment.sites import (
    CONFIG,
    DEFAULT_RUN,
    RUN,
    Address,
    ServerSite,
    private_files,
    read_server_site,
    run_name,
    write_run,
)
from spatl.disk.locks import is_locked
from spatl.errors import ConfigError, SpatlError
from spatl.report.result import read_run
from spatl.runner import Engine, resume, run
from spatl.runs.checkpoint import load_checkpoint
from spatl.runs.directory import alone_in_run, config_of, has_rounds, serving_run, write_config
from spatl.runs.files import CONFIG as RUN_CONFIG
from spatl.runs.files import ERROR, LOCK, MEMBERS, REGISTRATION, REPORT, SUMMARY, WAITING
from spatl.terminal.progress import progress_of
from spatl.terminal.result import print_result

logger = logging.getLogger(__name__)

_HOUR_SECONDS = 3600.0
_END_SECONDS = 30.0
_WAIT_SECONDS = {False: 600.0, True: 30.0}
"""How long all clients are waited for where enough are there, by whether a run goes on."""


@private_files()
def serve(options: Namespace, console: Console) -> None:
    """Run the federation of a server's directory, and stop all that it takes afterwards.

    Raises:
        SpatlError: The directory is none of a server, the clients do not come, or the run cannot start or go on.
    """
    directory = Path(options.directory).absolute()
    site = read_server_site(directory)
    config = of_all_clients(load_config(directory / CONFIG), site, directory / CONFIG)
    out = Path(options.out).absolute() if options.out else directory / DEFAULT_RUN
    rounds = _more_rounds(options, out, directory / CONFIG)
    os.environ.update(past_proxies())  # of this process, which calls the SuperLink on loopback

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    engine = _engine(options, directory, site, say)
    command = ["spatl", "deploy", "server", options.directory, *(["--out", options.out] if options.out else [])]
    if options.resume and rounds is None and (out / SUMMARY).exists() and (out / REPORT).exists():
        print_result(console, read_run(out))  # a service that is started again has nothing left to do
        if config_of(out).partition.num_clients < site.num_clients:
            say("the run is over; clients that were added since take part in more rounds: --set rounds=N")
        return
    began = has_rounds(out)
    if options.resume and not began:
        check_begun(directory, out)
    if began:
        config = config_of(out)
    shown = config.model_copy(update={"rounds": rounds}) if type(rounds) is int else config
    with serving_run(out), progress_of(console, shown) as progress:
        if began:
            if not options.resume:
                raise ConfigError(
                    f"{out} holds a run already: --resume goes on with it, --out starts another elsewhere"
                )
            of_all_clients(config, site, out / RUN_CONFIG)  # before anything of it is changed
            command += ["--resume", *([] if rounds is None else ["--set", f"rounds={rounds}"])]
            result = resume(out, rounds=rounds, on_round=progress.on_round, command=shlex.join(command), engine=engine)
        else:
            _forget_other(config, out)
            result = run(config, out, on_round=progress.on_round, command=shlex.join(command), engine=engine)
    print_result(console, result)


def _more_rounds(options: Namespace, out: Path, config: Path) -> Any:
    """Return how many rounds the run is to have, if it is to have more than it has.

    Raises:
        ConfigError: Something else is to be set, or there is no run that could go on to them.
    """
    if not options.overrides:
        return None
    if not options.resume:
        raise ConfigError(f"--set rounds=N goes with --resume; what a run starts with stands in {config}")
    rounds, _ = settings_to_go_on(options.overrides)
    if not has_rounds(out):
        raise ConfigError(f"{out} holds no run that could go on to more rounds; set rounds in {config}, and start it")
    return rounds


def _engine(options: Namespace, directory: Path, site: ServerSite, say: Callable[[str], None]) -> Engine:
    """Return what runs a config, or goes on with one, on the clients of a server's directory."""
    address = Address.parse(site.address)
    bind = Address(options.bind, address.port)
    if options.insecure:
        logger.warning("--insecure: no TLS; whoever reaches %s can take part, and read and change what passes", bind)
    if bind.is_loopback and not address.is_loopback:
        logger.warning("listening on %s only, where no other machine can call: set --bind 0.0.0.0", bind.host)

    def attempt(config: ExperimentConfig, run_directory: Path, *, resume: bool) -> None:
        site = read_server_site(directory)  # by now
        config = of_all_clients(config, site, run_directory / RUN_CONFIG)
        # What a killed one left may still be at work; the ServerApp locks it for good.
        with alone_in_run(run_directory):
            for name in (ERROR, MEMBERS, REGISTRATION, WAITING):
                (run_directory / name).unlink(missing_ok=True)
            name = run_name(run_directory) or _new_name()
            write_run(run_directory, name, directory)
            note_begun(directory, run_directory, name)
            write_config(run_directory, config)  # also for whoever looks meanwhile
        keys = {} if options.insecure else read_public_keys(directory, site.clients)
        number = len(site.clients)
        with started_superlink(
            directory, run_directory, bind, insecure=options.insecure, num_clients=site.num_clients
        ) as link:
            nodes = link.register(keys)
            link.open(None if options.insecure else keys.values())
            following = Following(
                directory, run_directory, link, site, keys=None if options.insecure else keys, nodes=nodes, say=say
            )
            say(f"listening on {bind}, waiting for {number} clients")
            enough = _enough(config, run_directory, resume=resume)
            wait = _WAIT_SECONDS[resume] if options.wait is None else options.wait
            link.await_clients(
                number, say, run=run_directory, seconds=wait, enough=enough,
                give_up=config.server.give_up_seconds,
            )  # fmt: skip
            link.run(
                config, run_directory, say, resume=resume, nodes=nodes, longest_step=options.longest_step or None,
                follow=following.look,
            )  # fmt: skip

    return _kept_up(attempt, options.restarts, say)


def _enough(config: ExperimentConfig, run_directory: Path, *, resume: bool) -> int:
    """Return how many clients must be connected before a run begins or goes on.

    Those who agreed on one set of channels go on together or not at all; others that are known may come later.
    """
    if not (resume and config.row.static_mask):
        return max(1, config.server.min_replies)
    checkpoint = load_checkpoint(run_directory)
    return config.partition.num_clients if checkpoint is None else len(checkpoint.state.num_examples)


def _kept_up(attempt: Engine, restarts: int, say: Callable[[str], None]) -> Engine:
    """Return an engine that is started again, on what the last one left, when its SuperLink or ServerApp was lost."""

    def engine(config: ExperimentConfig, run_directory: Path, *, resume: bool) -> None:
        started: list[float] = []
        while True:
            try:
                return attempt(config, run_directory, resume=resume)
            except LinkLost as error:
                started = [when for when in started if time.monotonic() - when < _HOUR_SECONDS]
                if len(started) >= restarts:
                    raise SpatlError(
                        f"{error}; started again {len(started)} times within an hour (--restarts); go on with --resume"
                    ) from error
                started.append(time.monotonic())
                say(f"{error}; starting again, after the last round that was over")
            deadline = time.monotonic() + _END_SECONDS
            while is_locked(run_directory / LOCK) and time.monotonic() < deadline:  # what was killed is ending
                time.sleep(0.1)
            config, resume = config_of(run_directory), True  # with what the clients have agreed on

    return engine


def _forget_other(config: ExperimentConfig, out: Path) -> None:
    """Give a run that never got to the end of a round another name where its config has changed.

    Under the same name, the devices go on from what they have of its first round.
    """
    try:
        same = _without_agreement(config_of(out)) == _without_agreement(config)
    except SpatlError:  # it is not there, or of another version
        same = False
    if not same:
        (out / RUN).unlink(missing_ok=True)


def _without_agreement(config: ExperimentConfig) -> ExperimentConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"agreed": None})})


def _new_name() -> str:
    """Return a new name for a run, which its devices know it by, also when it goes on."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
