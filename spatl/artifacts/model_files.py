"""Files of a model that leaves a run: weights by the network's own names, and how to make the network again.

A run's directory has the federation's model in `model/`, and each client's own part beside its state. Weights are
safetensors, which hold numbers alone; what makes the network is a name and options in JSON (`description`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spatl.artifacts.description import ModelDescription, Offset, read_description
from spatl.artifacts.names import BEST, LABEL_OFFSET, MODEL, PRIVATE, WEIGHTS
from spatl.data.dataset import Dataset, sizes_of_inputs
from spatl.data.normalisation import Normalisation
from spatl.disk.writing import replace_file
from spatl.errors import SpatlError
from spatl.models import add_residual_, build_model
from spatl.models.inputs import take_inputs_
from spatl.models.weights import load_weights_, packed, read_weights, weights_in
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.server_model import names_of_clients, server_tensors
from spatl.runs.states import reading_states
from spatl.tensors.inputs import NamedInputs
from spatl.wire.statistics import Statistics


@dataclass(frozen=True, eq=False)
class RunModel:
    """Model of a run.

    Attributes:
        network: In eval mode, on the CPU: images float32 [B, C, H, W] to logits [B, K], without a client's offset.
        description: What it is.
        offset: float32 [K], what the client adds to the logits; None for nothing, and for the federation's model.
    """

    network: nn.Module
    description: ModelDescription
    offset: Tensor | None = None

    def with_offset_(self) -> nn.Module:
        """Return the network, in place, with the client's offset added to whatever logits it returns.

        One of a regression then returns values in the targets' own units.
        """
        if self.offset is not None:
            self.network.register_forward_hook(AddOffset(self.offset))
        if self.description.target_scale is not None:
            self.network.register_forward_hook(InUnits(self.description.target_scale))
        return self.network


class AddOffset:
    """Forward hook that adds a client's offset to the logits.

    Args:
        offset: float32 [K].
    """

    def __init__(self, offset: Tensor) -> None:
        self.offset = offset

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        """Return the logits to use; those in half precision become float32."""
        return logits + self.offset.to(logits.device)


class InUnits:
    """Forward hook that brings the outputs of a regression into the targets' own units.

    Args:
        scale: By what the targets were scaled.
    """

    def __init__(self, scale: Normalisation) -> None:
        self.means, self.deviations = torch.tensor(scale.means), torch.tensor(scale.deviations)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> Tensor:
        """Return the outputs to use, float32 [B, K]."""
        return outputs * self.deviations.to(outputs.device) + self.means.to(outputs.device)


def describe_model(
    blueprint: Blueprint, *, statistics: Statistics | None, encoder: Tensor, accuracy: float | None,
    version: str, client: int | None = None,
) -> ModelDescription:  # fmt: skip
    """Describe the model that a federation has trained.

    Args:
        blueprint: The federation.
        statistics: The aggregated BatchNorm statistics; None where there are none.
        encoder: float32 [N], as the clients hold it.
        accuracy: As of `ModelDescription`.
        version: This program's.
        client: Whose the model is; None for the federation's.
    """
    config, dataset, predictor = blueprint.config, blueprint.dataset, blueprint.config.predictor
    calibrates = config.predictor_row.offset and predictor.strength > 0
    return ModelDescription(
        factory=config.model.name,
        options=dict(config.model.options),
        seed=config.seed,
        cut=blueprint.built_cut,
        residual=config.predictor_row.residual,
        predictor=config.predictor_mode,
        class_names=tuple(dataset.class_names),
        **_inputs_of(dataset),
        normalisation=dataset.normalisation,
        offset=Offset(predictor.strength, predictor.smoothing) if calibrates else None,
        statistics=_source_of_statistics(blueprint, statistics),
        lacks=() if client is not None else names_of_clients(blueprint, statistics),
        method=config.method,
        data=config.data.name,
        round=config.rounds,
        client=client,
        accuracy=accuracy,
        versions={"spatl": version, "torch": torch.__version__},
        encoder=hashlib.blake2b(encoder.numpy().tobytes(), digest_size=16).hexdigest(),
        task=dataset.task,
        metric=blueprint.task.score.name,
        target_scale=dataset.target_scale,
    )


def write_federation_model(
    run: Path, blueprint: Blueprint, *, statistics: Statistics | None, encoder: Tensor, accuracy: float | None,
    version: str, server_round: int,
) -> ModelDescription:  # fmt: skip
    """Write the federation's model after a round into a run's directory; the rest as of `describe_model`."""
    description = describe_model(blueprint, statistics=statistics, encoder=encoder, accuracy=accuracy, version=version)
    description = description.named(round=server_round)
    return write_model(run / MODEL, description, server_tensors(blueprint, statistics=statistics, encoder=encoder))


def write_model(
    directory: Path, description: ModelDescription, tensors: Mapping[str, Tensor], *, private: Mapping[str, Tensor] = {}
) -> ModelDescription:
    """Write a model's files, each whole; what is there is replaced.

    Args:
        directory: Where to; it is made.
        description: What it is.
        tensors: The weights, by the network's own names.
        private: A client's own tensors, of which `LABEL_OFFSET` is none of the network's.

    Returns:
        The description, with the checksum of the weights.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = packed(tensors)
    description = description.named(sha256=hashlib.sha256(data).hexdigest())
    if private:
        replace_file(directory / PRIVATE, packed(private))
    replace_file(directory / WEIGHTS, data)
    description.write(directory)
    return description


def read_model(directory: str | Path, *, client: int | None = None, best: bool = False) -> RunModel:
    """Read a model of a run, or that of a directory which `write_model` wrote.

    Args:
        directory: A run's, a device's of its state, or a model's own.
        client: Whose model; the federation's if not given.
        best: The best model by validation in place of the last one, of a run with `report.best`.

    Raises:
        SpatlError: There is none, it is damaged, or it is one that each client has a part of.
        ModelError: What makes its network is not there, or makes another one.
    """
    run, place = Path(directory), Path(directory)
    if (run / MODEL).is_dir():
        place = run / MODEL
    if best:
        place = place / BEST
        if not place.is_dir():
            raise SpatlError(f"{run} has kept no best model: {place} is not there (report.best, before the run)")
    description = read_description(place)
    if description.client is not None and client not in (None, description.client):
        raise SpatlError(f"{place} holds the model of client {description.client} alone, not that of {client}")
    tensors, private = read_weights(place / WEIGHTS, sha256=description.sha256), dict[str, Tensor]()
    if description.client is not None:
        private = read_weights(place / PRIVATE) if (place / PRIVATE).exists() else {}
    elif client is not None and not (best and description.lacks):
        private = _private_part(run, client)
        if best:  # all else in it is of the last model
            private = {name: each for name, each in private.items() if name == LABEL_OFFSET}
        description = description.named(client=client, lacks=(), accuracy=None)
    elif description.lacks:
        raise SpatlError(_lacking(place, description))
    offset = private.pop(LABEL_OFFSET, None)
    network = network_of(description)
    load_weights_(network, {**tensors, **private}, where=str(place))
    return RunModel(network.eval(), description, offset)


def network_of(description: ModelDescription) -> nn.Module:
    """Make the network of a description, with its initial weights.

    A name that is not built in, `package.module:name`, is imported: read descriptions of those you trust.

    Raises:
        ModelError: It cannot be made.
    """
    example = description.example()
    network, cut = build_model(
        description.factory, cut=description.cut, options=description.options, seed=description.seed,
        **sizes_of_inputs(example, num_classes=len(description.class_names), num_tokens=description.num_tokens),
    )  # fmt: skip
    take_inputs_(network, example)
    if description.residual:
        add_residual_(network, cut, example)
    return network


def _inputs_of(dataset: Dataset) -> dict[str, Any]:
    """Return what a description says of the inputs."""
    inputs = dataset.inputs
    if isinstance(inputs, NamedInputs):
        named = {
            name: [*each.shape[1:], *([] if each.is_floating_point() else ["int64"])] for name, each in inputs.items()
        }
        return {"input_shape": (), "named_inputs": named}
    tokens = dataset.sizes().get("num_tokens", 0)
    return {"input_shape": tuple(inputs.shape[1:]), "num_tokens": tokens}


def _private_part(run: Path, client: int) -> dict[str, Tensor]:
    """Return what a client of a run has of its own of the model."""
    path = run / "clients" / str(client) / PRIVATE
    with reading_states(run) as states:
        if states is not None:
            part, known, where = states.part(client), states.with_parts(), f"{states.path} has none"
            if part is not None:
                return weights_in(part, where=f"the part of client {client} in {states.path}")
        elif path.exists():
            return read_weights(path)
        else:
            paths = run.glob(f"clients/*/{PRIVATE}")
            known = sorted(int(each.parent.name) for each in paths if each.parent.name.isdigit())
            where = f"{path} is not there"
    there = f"there are clients {', '.join(map(str, known))}" if known else "devices keep their own parts themselves"
    raise SpatlError(f"{run} holds no part of client {client}: {where}; {there}")


def _lacking(place: Path, description: ModelDescription) -> str:
    """Return why the federation's model is of no use without a client's part, and what to do."""
    some = ", ".join(map(repr, description.lacks[:3]))
    line = f"{place} lacks {some}{' and others' if description.lacks[3:] else ''}, which each client has of its own"
    if description.statistics == "client":
        line += " (training.batch_norm: aggregated puts statistics together, but for methods that fine-tune)"
    return f"{line}: say whose model (--client ID, or client=ID)"


def _source_of_statistics(blueprint: Blueprint, statistics: Statistics | None) -> str:
    if not blueprint.split.encoder_statistics(blueprint.model):
        return "none"
    if statistics is not None:
        return "aggregated"
    return "shared" if blueprint.config.training.batch_norm == "shared" else "client"
