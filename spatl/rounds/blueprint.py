"""Blueprint of a federation: the model, its cut, its layout, its data, derived from the config on every side.

Server and clients never send each other the structure of anything; they build it, and compare fingerprints.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spatl.channels.costs import Budget, Costs, check_budget
from spatl.channels.layout import EncoderLayout
from spatl.channels.subnetworks import SubNetworks
from spatl.config.engines import ENGINES
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_json
from spatl.config.training import TrainingConfig
from spatl.data import ClientData, Dataset
from spatl.errors import ConfigError
from spatl.extensions.references import is_reference
from spatl.models import Split, add_residual_, build_model, make_split
from spatl.models.copies import DIGEST_BYTES, digest_of, digests_of_the_rest, duplicate
from spatl.models.split import everything_private
from spatl.models.weights import read_weights, start_from_
from spatl.rounds.client_data import check_simulated, load_clients, owners_of, sizes_of, split_client
from spatl.rounds.memory import check_memory
from spatl.rounds.remembered import remembered_warnings
from spatl.rounds.remembered_traces import traced
from spatl.rounds.room import check_room
from spatl.rounds.rules import rehearse_rule
from spatl.rounds.sampling import check_able
from spatl.rounds.soundness import check_output, check_weights
from spatl.rounds.stand_in import example_of, stand_in
from spatl.rounds.statistics import statistics_names
from spatl.saliency.filters import main_filters
from spatl.selection.before import check_part_budget, half_of
from spatl.selection.common_mask import check_static_budget
from spatl.selection.users import UsersSelector, rehearse_selector
from spatl.tasks.task import Task
from spatl.training.device import reproducible
from spatl.training.rehearsal import check_program, rehearse
from spatl.wire.blob import RECORD_BYTES
from spatl.wire.measures import Judging
from spatl.wire.statistics import arrival_bytes
from spatl.wire.update import update_bytes
from spatl.wire.users import WireCodecs, rehearse_codecs, usual_rounding, wire_codecs


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A config made concrete.

    Attributes:
        config: The config it was made from.
        model: The network with its initial weights, on the CPU; users of it work on copies.
        split: Its cut into encoder and predictor, as the method shares them.
        costs: The encoder's layout and what selections of it cost.
        dataset: All examples.
        partition: Indices of each client's examples.
        codecs: The codecs of its messages.
        warnings: What was said while it was made, for a log that was opened later (of `cached_blueprint` only).
        built_cut: The submodules that form the predictor of the network as its factory makes it.
    """

    config: ExperimentConfig
    model: nn.Module
    split: Split
    costs: Costs
    dataset: Dataset
    partition: tuple[Tensor, ...]
    codecs: WireCodecs
    warnings: tuple[logging.LogRecord, ...] = ()
    built_cut: tuple[str, ...] = ()

    @cached_property
    def task(self) -> Task:
        """Task of the targets: the loss, and the metrics in the targets' own units."""
        scale = self.dataset.target_scale
        return (
            self.config.task.task()
            if scale is None
            else self.config.task.task(means=scale.means, deviations=scale.deviations)
        )

    @cached_property
    def judging(self) -> Judging:
        """Judging of an evaluation: how both sides know what a client tells of it."""
        targets = self.dataset.targets
        return Judging(self.task, self.dataset.num_classes, targets.shape[1] if self.task.row.by_place else 1)

    @property
    def layout(self) -> EncoderLayout:
        """The shared encoder's layout; without entries when nothing is shared."""
        return self.costs.layout

    def initial_encoder(self) -> Tensor:
        """float32 [N], x before the first round; nobody may change it: the model's parameters may be views of it."""
        return self._initial_encoder

    @cached_property
    def _initial_encoder(self) -> Tensor:
        tensors = encoder_tensors(self.model, self.split)
        encoder = self.layout.flatten(tensors)
        views = self.layout.unflatten(encoder)
        for name, parameter in self.split.encoder_parameters(self.model).items():
            if name in views and _is_plain(parameter):
                parameter.data = views[name]  # so that there is one copy of it, not two
        return encoder

    @cached_property
    def subnetworks(self) -> SubNetworks:
        """Parts of the network that clients may train in place of it."""
        return SubNetworks(self.model, example_of(self.config, self.dataset), self.costs.trace)

    @property
    def message_bytes(self) -> int | None:
        """Length in bytes that a blob may have in either direction; None where the config says nothing."""
        ratio = self.config.wire.target_ratio
        return None if ratio is None else math.floor(4 * self.layout.num_entries / ratio) - RECORD_BYTES

    @cached_property
    def statistics(self) -> dict[str, tuple[str, str]]:
        """Names of the running mean and variance of each layer whose statistics are aggregated after the last round."""
        if not self.config.aggregates_statistics:
            return {}
        return statistics_names(self.model, self.split)

    @property
    def asks_after_the_rounds(self) -> bool:
        """True where clients are asked about the encoder after the last round before they are to evaluate it."""
        return bool(self.statistics) or self.config.keeps_best

    @property
    def num_arrived(self) -> int | None:
        """Number of channels whose statistics an update tells of with the encoder that arrived; None without those."""
        return self.num_statistics if self.config.keeps_best else None

    @cached_property
    def num_statistics(self) -> int:
        """Number of channels whose statistics are aggregated (S)."""
        buffers = dict(self.model.named_buffers())
        return sum(buffers[mean].numel() for mean, _ in self.statistics.values())

    @cached_property
    def split_sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Training, validation and test examples of each client, of data that clients share out."""
        return tuple(sizes_of(self.config, self.dataset, self.partition))

    @cached_property
    def num_training(self) -> tuple[int, ...]:
        """Training examples of each client, likewise (n_i)."""
        return tuple(train for train, _, _ in self.split_sizes)

    def client_data(self, client: int) -> ClientData:
        """The splits of one client, drawn once from the seed."""
        return split_client(self.config, self.dataset, self.partition, client)

    @cached_property
    def owners(self) -> tuple[str, ...]:
        """Names of the clients' owners; none where nobody has named them, and of devices with data of their own."""
        return owners_of(self.config, self.dataset, self.partition) if self.partition else ()

    @cached_property
    def rest(self) -> dict[str, bytes]:
        """Digests by name of what both sides build and no message carries; what is built in is told by its name."""
        return {**self.users_parts, **self._rest_of_the_model}

    @cached_property
    def _rest_of_the_model(self) -> dict[str, bytes]:
        """Digests by name of what a forward pass depends on beside what travels."""
        if not is_reference(self.config.model.name) or not self.layout.num_entries:
            return {}
        return digests_of_the_rest(self.model, self.split, self.layout.shapes)

    @cached_property
    def users_parts(self) -> dict[str, bytes]:
        """Digests of what the user's method says, and partitioner and codecs made, by what messages call them."""
        found = {}
        if is_reference(self.config.method):
            found[f"method {self.config.method!r}"] = _digest_of_text(repr(self.config.row.facts()))
        if is_reference(self.config.partition.name) and self.partition:
            found[f"partition by {self.config.partition.name!r}"] = digest_of(self.partition)
        for name, decoded in rehearse_codecs(self.codecs, self.layout, seed=self.config.seed).items():
            found[f"codec {name!r}"] = digest_of(decoded)
        return found

    def check_clients(self) -> None:
        """Check all clients of a simulation; a device need not look at the others.

        Raises:
            DataError: A client has too few examples to split.
            ModelError: The model fails in a training step on batches like theirs.
            BudgetError: A selector of the user's chooses more than the budget pays for.
            ConfigError: The clients are devices with data of their own, whether they have registered or not; or a
                selector or aggregation rule of the user's does not answer as it must.
        """
        check_simulated(self.config)
        self._clients_checked  # noqa: B018  # once per blueprint

    @cached_property
    def _clients_checked(self) -> None:
        training, here = self.config.training, ENGINES[self.config.engine].in_process
        check_program(self.model, self.dataset.inputs, training, here=here)
        self.check_training(dict(enumerate(self.num_training)))
        self.check_rule()
        name = self.config.selection.selector
        if self.config.row.selects and is_reference(name):
            validating = max(range(len(self.split_sizes)), key=lambda client: self.split_sizes[client][1] > 0)
            with reproducible(self.config.training.threads):
                rehearse_selector(
                    UsersSelector(name), duplicate(self.model), self.initial_encoder(), self.costs,
                    self.config.budget(0), self.client_data(validating),
                    batch_size=self.config.training.batch_size, seed=self.config.seed,
                )  # fmt: skip

    def check_rule(self) -> None:
        """Raise unless an aggregation rule of the user's does as it must; the server's affair.

        Raises:
            ConfigError: It does not, or is not there.
        """
        config = self.config
        rehearse_rule(
            config.server.aggregation, self.layout, self.initial_encoder(), controls=config.row.controls,
            normalizes=config.row.normalizes, trim_fraction=config.server.trim_fraction, seed=config.seed,
        )  # fmt: skip

    def check_training(self, num_examples: Mapping[int, int]) -> None:
        """Raise unless clients with so many training examples each can train (`spatl.training.rehearsal`).

        Raises:
            ModelError: The model fails in a training step on batches like theirs.
        """
        alike: dict[tuple[int, int | None], tuple[TrainingConfig, set[int]]] = {}
        for client, number in num_examples.items():
            settings = self.config.training_of(client)
            alike.setdefault((settings.batch_size, settings.local_steps), (settings, set()))[1].add(number)
        with reproducible(self.config.training.threads):
            for settings, numbers in alike.values():
                rehearse(
                    self.model,
                    self.dataset.inputs,
                    self.dataset.targets,
                    settings,
                    num_classes=self.dataset.num_classes,
                    client_sizes=numbers,
                    seed=self.config.seed,
                    task=self.task,
                )


def make_blueprint(config: ExperimentConfig, *, has_data: bool = True, most_bytes: int | None = None) -> Blueprint:
    """Build and check what a config describes, but for the clients' splits (`Blueprint.check_clients`).

    Args:
        config: The run.
        has_data: Whether this machine has data where each device has its own; the server then needs none.
        most_bytes: Memory that a device's owner lets it take; None for any.

    Raises:
        SpatlError: A data set, model, cut, partition or budget does not work out.
        NotAllowed: It would take more memory than it may; the network was not built.
    """
    dataset, parts = load_clients(config) if has_data else (stand_in(config), ())
    if most_bytes is not None:
        check_memory(config, dataset, most_bytes)
    example = example_of(config, dataset)
    model, cut = build_model(
        config.model.name, **dataset.sizes(), cut=config.model.cut, options=config.model.options, seed=config.seed
    )
    if config.model.weights is not None:
        path = Path(config.model.weights)
        tensors = read_weights(path, sha256=config.model.weights_sha256)
        start_from_(model, tensors, predictor=Split(tuple(cut)), where=str(path))
    check_weights(model)
    check_output(model, dataset)
    built_cut = cut
    if config.predictor_row.residual:
        cut = add_residual_(model, cut, example)
    split = _SPLITS[config.shares](model, cut)
    shared = config.training.batch_norm == "shared"
    trace = traced(
        config,
        model,
        example,
        parameters=list(split.encoder_parameters(model)),
        statistics=list(split.encoder_statistics(model)) if shared else [],
    )
    layout = trace.layout
    wire = config.wire
    rounding = wire.rounding or usual_rounding(layout.num_entries, classifies=config.task.name == "classification")
    codecs = wire_codecs(wire.uplink, wire.downlink, rounding=rounding, downlink_steps=wire.downlink_steps)

    def bytes_of_update(num_values: int, num_channels: int) -> int:
        told = 0 if blueprint.num_arrived is None else arrival_bytes(blueprint.num_arrived)
        told += blueprint.judging.section_bytes
        return told + update_bytes(layout, codecs.uplink, num_values=num_values, num_channels=num_channels)

    costs = Costs(trace, bytes_of_update)
    blueprint = Blueprint(config, model, split, costs, dataset, parts, codecs, built_cut=built_cut)
    blueprint.task  # noqa: B018  # which raises where a loss or a metric is not there
    if config.report.findings is not None:
        main_filters(model)  # raises where there are none
    _check_codecs(blueprint)
    check_room(layout, blueprint.message_bytes, config.wire.target_ratio)
    _check_budgets(blueprint)
    return blueprint


@lru_cache(maxsize=2)
def cached_blueprint(config_json: str, most_bytes: int | None = None) -> Blueprint:
    """Return the blueprint of a config, made once per process; `most_bytes` as of `make_blueprint`."""
    with remembered_warnings() as warnings:
        blueprint = make_blueprint(config_from_json(config_json), most_bytes=most_bytes)
    return replace(blueprint, warnings=tuple(warnings))


@lru_cache(maxsize=1)
def servers_blueprint(config_json: str) -> Blueprint:
    """Return the blueprint as the server needs it: without data where each device has its own."""
    config = config_from_json(config_json)
    return make_blueprint(config, has_data=False) if config.has_own_data else cached_blueprint(config_json)


def _is_plain(parameter: nn.Parameter) -> bool:
    """Return whether a parameter is all that uses its memory, and is laid out as in a flat vector of float32."""
    return (
        type(parameter) is nn.Parameter
        and parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
        and parameter.is_contiguous()
        and parameter.untyped_storage().nbytes() == 4 * parameter.numel()
    )


def encoder_tensors(model: nn.Module, split: Split) -> dict[str, Tensor]:
    """The tensors of a model that a layout may name: the encoder's trainable parameters and its statistics."""
    return {**split.encoder_parameters(model), **split.encoder_statistics(model)}


def load_encoder_(model: nn.Module, layout: EncoderLayout, vector: Tensor) -> None:
    """Copy a flat vector [N] into the encoder of a model, in place."""
    if not (views := layout.unflatten(vector)):
        return
    tensors = layout.tensors_of(model)
    with torch.no_grad():
        torch._foreach_copy_([tensors[name] for name in views], list(views.values()))


def _digest_of_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def check_client_budget(blueprint: Blueprint, budget: Budget, *, source: str = "selection") -> None:
    """Raise unless some choice of a client's meets a budget, which was set at `source`.

    Raises:
        BudgetError: None does.
    """
    if blueprint.config.trains_parts:
        check_part_budget(budget, blueprint.costs, blueprint.subnetworks.prunable, source=source)
    else:
        check_budget(budget, blueprint.costs, source=source)


def _check_budgets(blueprint: Blueprint) -> None:
    """Raise unless some selection meets each budget of the config."""
    config, costs = blueprint.config, blueprint.costs
    if config.row.static_mask:
        check_static_budget(config.budget(), costs)
    if config.chooses_channels:
        check_client_budget(blueprint, config.budget())
        for client in config.selection.clients:
            check_client_budget(blueprint, config.budget(client), source=f"selection.clients.{client}")
    check_able(config)
    if config.trains_parts:
        blueprint.subnetworks.check(half_of(blueprint.subnetworks.prunable))


def _check_codecs(blueprint: Blueprint) -> None:
    """Raise unless codecs of the user's do as they must, which a config does not look at."""
    config = blueprint.config
    if config.row.controls and config.control.downlink == "derived" and not blueprint.codecs.downlink.relative:
        raise ConfigError(
            f"control.downlink: derived needs a wire.downlink that sends changes; {config.wire.downlink} does not"
        )
    blueprint.users_parts  # noqa: B018  # once per blueprint; it rehearses them


_SPLITS: dict[str, Callable[[nn.Module, tuple[str, ...]], Split]] = {
    "encoder": make_split,
    "all": lambda model, _: make_split(model, ()),
    "nothing": lambda model, _: everything_private(model),
}
