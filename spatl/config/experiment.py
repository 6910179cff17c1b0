"""Experiment configuration: all sections together, and the rules that hold across them."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from spatl.channels.budgets import Budget
from spatl.config.bench import BenchConfig
from spatl.config.report import ReportConfig
from spatl.config.resources import ResourcesConfig
from spatl.config.rules import (
    check_control,
    check_corrections,
    check_findings,
    check_parts_trained,
    check_privacy,
    check_replies,
    check_stopping,
    check_training,
)
from spatl.config.saliency import SaliencyConfig
from spatl.config.sections import (
    ControlConfig,
    Count,
    DataConfig,
    ModelConfig,
    PartitionConfig,
    PredictorConfig,
    PrivacyConfig,
    Section,
    ServerConfig,
    WireConfig,
    one_of,
)
from spatl.config.selection import AgentConfig, SelectionConfig
from spatl.config.server_optimizer import ServerOptimizerConfig
from spatl.config.task import TaskConfig
from spatl.config.training import OPTIMIZER_DEFAULTS, TrainingConfig
from spatl.data import DATASETS, OWN, is_read_from_path
from spatl.extensions.references import is_reference
from spatl.methods import METHOD_DOOR, METHODS, PREDICTORS, Method, PredictorMode, PredictorRow, find_method
from spatl.selection.table import SELECTORS
from spatl.tasks.rows import TASKS


class ExperimentConfig(Section):
    """Config of one run."""

    seed: Annotated[int, Field(ge=0)] = 1
    """Everything random in the run follows from it."""
    rounds: Count = 20
    """Rounds of training."""
    method: str = "spatl"
    """A row of `spatl show methods`, or `package.module:ROW`."""
    engine: Literal["inline", "ray"] = "inline"
    """`inline` runs in this process; `ray` uses Flower's simulation runtime."""
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig = ModelConfig()
    predictor: PredictorConfig = PredictorConfig()
    training: TrainingConfig = TrainingConfig()
    selection: SelectionConfig = SelectionConfig()
    agent: AgentConfig = AgentConfig()
    control: ControlConfig = ControlConfig()
    server: ServerConfig = ServerConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    wire: WireConfig = WireConfig()
    resources: ResourcesConfig = ResourcesConfig()
    report: ReportConfig = ReportConfig()
    bench: BenchConfig = Field(default=BenchConfig(), exclude=True)  # no part of what a run is
    saliency: SaliencyConfig = Field(default=SaliencyConfig(), exclude=True)  # likewise

    @model_validator(mode="before")
    @classmethod
    def _with_the_methods_own(cls, values: Any) -> Any:
        """Fill in what goes with the method where nothing else is said."""
        if not isinstance(values, Mapping):
            return values
        method = str(values.get("method", cls.model_fields["method"].default))
        if method not in METHODS and not is_reference(method):  # which is then told
            return values
        row = find_method(method)
        filled = dict(values)
        fixed = {"predictor": {"mode": row.predictor_mode}} if row.predictor_mode else {}
        for section, own in {**fixed, **row.defaults}.items():
            given = filled.get(section, {})
            if isinstance(given, Mapping):
                optimizers = OPTIMIZER_DEFAULTS.get(str(given.get("optimizer")), {}) if section == "training" else {}
                filled[section] = {**own, **optimizers, **given}
        return filled

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        return one_of(method, METHODS, door=METHOD_DOOR)

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        check_replies(self.server, self.num_participants)
        check_training(self.training, self.row, self.rounds)
        check_control(self.control, self.row, self.wire, self.server_optimizer)
        check_corrections(self.row, self.server)
        check_stopping(self.server, self.report, has_one_model=self.has_one_model, keeps_best=self.keeps_best)
        check_findings(self.report, self.row, self.task.name, has_one_model=self.has_one_model)
        check_parts_trained(self.selection, self.row, self.server, self.server_optimizer, self.privacy)
        check_privacy(self.privacy, self.row, self.server, self.report, self.training)
        self.resources.check_groups(self.training.group_size)
        return self

    @property
    def num_participants(self) -> int:
        """Number of clients that are asked in a round."""
        return max(1, round(self.server.fraction_train * self.partition.num_clients))

    @property
    def chooses_channels(self) -> bool:
        """True where clients choose, by a budget, the channels that they send."""
        name = self.selection.selector
        return self.row.selects and not (name in SELECTORS and SELECTORS[name].whole)

    @property
    def trains_parts(self) -> bool:
        """True where clients train the channels that they choose, and nothing else."""
        return self.chooses_channels and self.selection.when == "before"

    def budget(self, client: int | None = None) -> Budget:
        """Return the budget of a client, or of those that have none of their own."""
        return self.selection.budget(client) or Budget("keep_ratio", self.row.keep_ratio)

    @model_validator(mode="after")
    def _clients_that_there_are(self) -> Self:
        for section, clients in (("selection", self.selection.clients), ("training", self.training.clients)):
            for client in clients:
                if client >= self.partition.num_clients:
                    raise ValueError(
                        f"{section}.clients names client {client}, but there are {self.partition.num_clients}, from 0"
                    )
        return self

    def training_of(self, client: int, server_round: int | None = None) -> TrainingConfig:
        """Return how a client trains, in a round as its schedule says, or at the full rate for no round."""
        own = self.training.of_client(client)
        return own if server_round is None else own.in_round(server_round, self.rounds)

    @property
    def has_own_data(self) -> bool:
        """Return whether each client is a device with data of its own."""
        return self.partition.name == OWN

    @property
    def shares_data_on_disk(self) -> bool:
        """Return whether clients get shares of one data set that each machine reads from its own disk."""
        from_hub = not is_reference(self.data.name) and bool(self.data.options.get("hub"))
        return is_read_from_path(self.data.name) and not from_hub and not self.has_own_data

    @property
    def run_name(self) -> str:
        """Name of the run's directory, without the time: its method, as a name of a file, and its seed."""
        return f"{self.method.replace(':', '-')}-{self.seed}"

    @property
    def row(self) -> Method:
        """Row of the method in the table of methods."""
        return find_method(self.method)

    @property
    def aggregates_statistics(self) -> bool:
        """True where clients' BatchNorm statistics are put together after the last round, if there are any.

        Not under privacy, of whose noise they would be free; nor where a client evaluates weights of its own.
        """
        return self.training.batch_norm == "aggregated" and self.privacy.noise_multiplier is None and self.has_one_model

    @property
    def has_one_model(self) -> bool:
        """True where what clients evaluate is one model of them all, but for the part of each that is its own."""
        return self.shares != "nothing" and not self.row.evaluates_own

    @property
    def keeps_best(self) -> bool:
        """True where updates tell how good the encoder was that arrived, so that the best one can be kept."""
        return self.report.best and self.has_one_model

    def may_be_last(self, server_round: int) -> bool:
        """Return whether a round may be the last: the one that ends the run, or from where it may end by itself on."""
        stop_after = self.server.stop_after if self.keeps_best else None
        # The first to be the best is round 1, and each is told of in the one after it.
        early = stop_after is not None and stop_after + 2 <= server_round < self.rounds
        return early or server_round == self.rounds

    @property
    def predictor_mode(self) -> PredictorMode:
        """Private part of the predictor: as the method says, or this config where the method leaves it open.

        Of a task whose targets have no frequencies a `calibrated` one is `shared`.
        """
        mode = self.row.predictor_mode or self.predictor.mode
        return "shared" if mode == "calibrated" and not TASKS[self.task.name].frequencies else mode

    @property
    def predictor_row(self) -> PredictorRow:
        """The facts of that mode; without an offset where the targets of the task have no frequencies."""
        row = PREDICTORS[self.predictor_mode]
        return row if TASKS[self.task.name].frequencies else replace(row, offset=False)

    @property
    def shares(self) -> Literal["encoder", "all", "nothing"]:
        """Part of the model that the server averages; the rest stays with the clients."""
        if self.row.shares != "chosen":
            return self.row.shares
        return PREDICTORS[self.predictor.mode].shares

    def located(self, directory: Path) -> Self:
        """Return the config with absolute paths, for processes that start in another directory.

        Weights to start from have their checksum besides.

        Raises:
            SpatlError: There is no file of such weights.
        """
        partition = self.partition
        if partition.path is not None:
            partition = partition.model_copy(update={"path": _absolute(partition.path, directory)})
        report = self.report
        if report.test_data is not None:
            report = report.model_copy(update={"test_data": _absolute(report.test_data, directory)})
        data, model = _located(self.data, directory), self.model.located(directory)
        return self.model_copy(update={"model": model, "data": data, "partition": partition, "report": report})

    def without_weights(self) -> Self:
        """Return the config with weights drawn from the seed, for a device, which opens no file that another names."""
        return self.model_copy(update={"model": self.model.without_weights()})

    def to_json(self) -> str:
        """Return the whole config as one JSON value, for Flower's flat `run_config`."""
        return self.model_dump_json()

    def to_yaml(self) -> str:
        """Return the whole config, resolved, in the form that `load_config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _absolute(path: str, directory: Path) -> str:
    return str(directory / os.path.expanduser(path))


def _located(data: DataConfig, directory: Path) -> DataConfig:
    """Return the settings of a data set with an absolute path, where it is read from one."""
    if not is_read_from_path(data.name) or data.options.get("hub"):
        return data
    given = "path" in data.options or is_reference(data.name)
    path = data.options.get("path") if given else DATASETS[data.name].default_path
    if not isinstance(path, str) or not path:
        return data
    options = {**data.options, "path": _absolute(path, directory)}
    return data.model_copy(update={"options": options})
