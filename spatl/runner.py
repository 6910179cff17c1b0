"""Running a federation from Python: config in, finished run out."""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from spatl.artifacts.names import MODEL
from spatl.config.engines import ENGINES
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, parse_config
from spatl.config.unread import settings_without_effect
from spatl.deployment.sites import is_deployment, resume_command
from spatl.errors import ConfigError, SpatlError
from spatl.models.weights import read_weights
from spatl.report.pictures import draw
from spatl.report.result import RunResult, read_run
from spatl.rounds.best import is_enough
from spatl.rounds.blueprint import Blueprint, cached_blueprint
from spatl.rounds.client_data import remarks_on_splits
from spatl.rounds.federation import remarks_on_control
from spatl.rounds.memory_data import check_same_data, with_data
from spatl.runs.directory import alone_in_run, config_of, fresh_directory, write_config
from spatl.runs.files import ALONE, CONFIG, LOG, REPORT, SUMMARY
from spatl.runs.following import follow
from spatl.runs.going_on import where_to_go_on
from spatl.runs.log import logged_to
from spatl.runs.tensorboard import check_tensorboard
from spatl.terminal.progress import progress_of, watched_console
from spatl.terminal.screen import Screen
from spatl.training.device import choose_device

logger = logging.getLogger(__name__)


Engine = Callable[..., None]
"""`engine(config, directory, *, resume)` runs a federation or goes on with one, and leaves its files in `directory`."""

OnRound = Callable[[dict[str, Any]], None]


def run(
    config: ExperimentConfig | Mapping[str, Any] | str | Path,
    directory: str | Path | None = None,
    *,
    on_round: OnRound | None = None,
    on_round_alone: OnRound | None = None,
    command: str = "spatl run config.yaml",
    pictures: bool = True,
    engine: Engine | None = None,
    warn: bool = True,
    progress: bool | None = None,
    data: object = None,
) -> RunResult:
    """Run a federation.

    Args:
        config: What to run: a config, mappings as of `parse_config`, or what `load_config` takes.
        directory: Where its files go: a new or empty directory; `runs/<method>-<seed>-<time>` if not given.
        on_round: Called from a thread of its own with each object of `history.jsonl` soon after it is written, and with
            what the clients' training and selection took (`training_seconds` and so on).
        on_round_alone: Likewise for the clients that train alone (`report.compare_alone`).
        command: What the report says made it.
        pictures: Whether to draw `curves.png` and write `report.html`.
        engine: What runs it; the config's if not given.
        warn: Whether to say, once and before it starts, which settings have no effect and how its data were read.
        progress: Whether to show the run as it goes. If not given, in a notebook and on a terminal (its error stream),
            unless `on_round` is given.
        data: Examples in memory in place of the config's: as of `spatl.data.brought`, for all or for each client.

    Returns:
        The finished run.

    Raises:
        SpatlError: The config does not work out, or the run cannot go on; what was computed stays in the directory.

    Example:
        >>> result = run("quickstart")
        >>> result.summary["accuracy"]
    """
    config = with_data(as_config(config), data, deployed=engine is not None)
    if engine is None and directory is not None:
        _check_simulation(Path(directory))
    if directory is not None:
        directory = fresh_directory(directory, name=config.run_name)
    blueprint = _checked(config, deployed=engine is not None)
    directory = fresh_directory(
        directory, name=config.run_name
    )  # again: another process may have taken it in the meantime
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpatlError(f"cannot make the run's directory {directory}: {error.strerror}") from error
    if warn:
        _warn(directory, remarks_on(config, blueprint, engine="deployment" if engine else config.engine))
    config = config.located(Path.cwd())  # Ray's workers start elsewhere, and config.yaml should repeat the run
    with _watched(config, on_round, on_round_alone, progress) as told:
        return run_missing(config, directory, *told, command=command, pictures=pictures, engine=engine)


def _checked(config: ExperimentConfig, *, deployed: bool) -> Blueprint | None:
    """Return what a config describes; None where each device has its own data, and nothing to build before they came.

    Raises:
        SpatlError: The config does not work out, or a package that it needs is not installed.
    """
    if config.report.tensorboard:
        check_tensorboard()
    if not deployed:
        _check_workers(config)
    return None if deployed and config.has_own_data else check(config)


def _check_workers(config: ExperimentConfig) -> None:
    if config.resources.workers and ENGINES[config.engine].in_process:
        training = config.training
        config.resources.check_workers(device=str(choose_device(training.device)), threads=training.threads)


def resume(
    directory: str | Path,
    *,
    rounds: int | None = None,
    workers: int | None = None,
    on_round: OnRound | None = None,
    on_round_alone: OnRound | None = None,
    command: str = "spatl run --resume",
    pictures: bool = True,
    engine: Engine | None = None,
    progress: bool | None = None,
    data: object = None,
) -> RunResult:
    """Go on with a run that was killed, or is to have more rounds, after the last round that was over.

    The end is as if nothing had happened.

    Args:
        directory: The run's.
        rounds: How many rounds it is to have, more than its config says; as many as that if not given.
        workers: Processes that train clients (`resources.workers`), which change no number; as before if not given.
        on_round: As of `run`; called for the rounds that were over, too.
        on_round_alone: Likewise.
        command: What the report says made it.
        pictures: As of `run`.
        engine: Likewise.
        progress: Likewise.
        data: Of a run of data in memory: the same ones again.

    Returns:
        The finished run.

    Raises:
        SpatlError: The directory holds no run, or a deployment's, or one that is finished, or another process runs it;
            or the run has as many rounds already.
    """
    directory = Path(directory).absolute()
    if engine is None:
        _check_simulation(directory)
    config = config_of(directory)
    if data is not None:
        check_same_data(config, data)
    if rounds is not None:
        config = _extended(directory, config, rounds)
    if (directory / SUMMARY).exists() and (directory / REPORT).exists():
        raise ConfigError(
            f"the run in {directory} is finished; there is nothing to resume (spatl report {directory} draws its "
            "pictures again)"
        )
    if workers is not None:
        config = _with_workers(directory, config, workers)
    with _watched(config, on_round, on_round_alone, progress) as told:
        return run_missing(config, directory, *told, command=command, pictures=pictures, engine=engine)


def _with_workers(directory: Path, config: ExperimentConfig, workers: int) -> ExperimentConfig:
    """Have a run, and that of its clients alone, go on with another number of processes; return its config.

    Raises:
        SpatlError: There cannot be so many, or another process runs it.
    """

    def changed(own: ExperimentConfig) -> ExperimentConfig:
        return parse_config({**own.model_dump(), "resources": {**own.resources.model_dump(), "workers": workers}})

    _check_workers(changed(config))
    for own in (directory, directory / ALONE):
        if (own / CONFIG).exists():
            with alone_in_run(own):
                write_config(own, changed(config_of(own)))
    return config_of(directory)


def _extended(directory: Path, config: ExperimentConfig, rounds: int) -> ExperimentConfig:
    """Have a run, and that of its clients alone, go on to more rounds; return its config.

    Raises:
        SpatlError: It has as many rounds already, another process runs it, or nobody can go on from its end.
    """
    if type(rounds) is not int or rounds <= config.rounds:
        so_many = "" if (directory / SUMMARY).exists() else "; it is not over, and goes on to these without"
        raise ConfigError(
            f"{directory} is a run of {config.rounds} rounds: rounds must be more than that, got {rounds}{so_many}"
        )
    if config.model.weights is not None:  # before anything of it is touched
        read_weights(Path(config.model.weights), sha256=config.model.weights_sha256)
    runs = [own for own in (directory, directory / ALONE) if (own / CONFIG).exists()]
    for own in runs:
        if (own / SUMMARY).exists() and not (own / MODEL).exists():
            raise ConfigError(
                f"{own} was finished by a version that kept no state to go on from; start a run of its own"
            )
        if (own / SUMMARY).exists():
            read_run(own)
        checkpoint, _ = where_to_go_on(own, devices=is_deployment(directory))
        if checkpoint and is_enough(checkpoint.state.best, checkpoint.server_round, config.server.stop_after):
            raise ConfigError(
                f"the run in {own} ended after round {checkpoint.server_round}, because none since round "
                f"{checkpoint.state.best.server_round if checkpoint.state.best else 0} was better on the validation "
                "splits (server.stop_after); it has no more rounds"
            )
    for own in runs:
        with alone_in_run(own):
            for name in (SUMMARY, REPORT):  # a run without a summary is not over; killed here, it is told anew
                (own / name).unlink(missing_ok=True)
            longer = config_of(own).model_copy(update={"rounds": rounds})
            write_config(own, longer)
    return config_of(directory)


def as_config(config: ExperimentConfig | Mapping[str, Any] | str | Path) -> ExperimentConfig:
    """Return the config that was given in one of the ways there are.

    Raises:
        ConfigError: It was given in another one, or a key or value is not allowed.
    """
    if isinstance(config, ExperimentConfig):
        return config
    if isinstance(config, Mapping):
        return parse_config(config)
    if isinstance(config, str | Path):
        return load_config(config)
    raise ConfigError(
        "run expects a config: what load_config or parse_config returns, a mapping of settings such as "
        f'{{"rounds": 10}}, or the path of a YAML file; got {type(config).__name__}: {config!r:.80}'
    )


def _check_simulation(directory: Path) -> None:
    """Raise for a deployment's directory: its devices must not be replaced by clients of this machine.

    Raises:
        ConfigError: It is one.
    """
    if is_deployment(directory):
        raise ConfigError(
            f"{directory} is a deployment's, whose clients are devices and no simulation: {resume_command(directory)}"
        )


@contextmanager
def _watched(
    config: ExperimentConfig, on_round: OnRound | None, on_round_alone: OnRound | None, progress: bool | None
) -> Iterator[tuple[OnRound, OnRound]]:
    """Yield what each round of the federation, and of training alone, is told to: the caller's own, and the display."""
    own = [each for each in (on_round, on_round_alone) if each is not None]
    console = watched_console() if progress is None and not own else None
    if progress:
        console = Screen(stderr=True)
    if console is None:
        yield _both(_nothing, on_round), _both(_nothing, on_round_alone)
        return
    with progress_of(console, config) as shown:
        yield _both(shown.on_round, on_round), _both(shown.on_round_alone, on_round_alone)


def _nothing(row: dict[str, Any]) -> None:
    pass


def _both(first: OnRound, second: OnRound | None) -> OnRound:
    def called(row: dict[str, Any]) -> None:
        first(row)
        if second is not None:
            second(row)

    return called


def run_missing(
    config: ExperimentConfig,
    directory: Path,
    on_round: OnRound,
    on_round_alone: OnRound,
    *,
    command: str,
    pictures: bool,
    engine: Engine | None,
) -> RunResult:
    """Run the missing parts of a run, and draw it."""
    _run_one(config, directory, on_round, engine)
    if config.report.compare_alone and config.method != "local":
        _run_one(alone(config), directory / ALONE, on_round_alone)
    result = read_run(directory)
    if not pictures:
        return result
    try:
        # As it was run: devices agree on some of it when they register.
        draw(result, config_of(directory), command=command)
    except SpatlError as error:  # the numbers are there; pictures need an extra that a bare install lacks
        logger.warning("no curves.png and no report.html: %s", error)
    return result


def remarks_on(
    config: ExperimentConfig, blueprint: Blueprint | None, *, engine: Literal["inline", "ray", "deployment"]
) -> list[str]:
    """Return the remarks on a run before it starts: settings without effect, and how its data were read.

    Where there is no blueprint yet, of data that lie on the devices, that is the settings.
    """
    model, dataset = (blueprint.model, blueprint.dataset) if blueprint is not None else (None, None)
    unread = settings_without_effect(config, engine=engine, model=model, dataset=dataset)
    few = [] if blueprint is None else remarks_on_splits(blueprint.split_sizes, blueprint.owners)
    control = [] if blueprint is None else remarks_on_control(blueprint)
    return [*unread.values(), *(dataset.remarks() if dataset is not None else ()), *few, *control]


def _warn(directory: Path, lines: Sequence[str]) -> None:
    if not lines:
        return
    with logged_to(directory / LOG):
        for line in lines:
            logger.warning("%s", line)


def alone(config: ExperimentConfig) -> ExperimentConfig:
    """Return the config of the same clients, splits, initial weights and epochs without a federation."""
    own = {"method": "local", "predictor": {}, "report": {"compare_alone": False}}
    return parse_config({**config.model_dump(), **own})


def check(config: ExperimentConfig) -> Blueprint:
    """Build what a config describes, so that a mistake in it shows before anything is written.

    Raises:
        SpatlError: The config does not work out.
    """
    blueprint = cached_blueprint(config.located(Path.cwd()).to_json())
    blueprint.check_clients()
    return blueprint


def _run_one(config: ExperimentConfig, directory: Path, on_round: OnRound, engine: Engine | None = None) -> None:
    """Run a federation, or go on with what its directory holds of it, unless that is all."""
    finished = (directory / SUMMARY).exists()
    begun = (directory / CONFIG).exists()
    runs = engine or _engine(config.engine)
    over = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="spatl-follow") as pool:
        following = pool.submit(follow, directory, on_round, over)
        try:
            if not finished:
                runs(config, directory, resume=begun)
        finally:
            over.set()
    following.result()  # what the caller's own on_round raised


def _engine(name: str) -> Engine:
    module, _, attribute = ENGINES[name].reference.partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)
    return engine
