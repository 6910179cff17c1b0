"""Memory that a run takes on a device, estimated before its network is built.

A built-in network is made without memory, on PyTorch's device `meta`, and passes a batch there. A network of the
owner's own code is not measured: it runs because its owner has listed it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from spatl.config.experiment import ExperimentConfig
from spatl.data import Dataset
from spatl.errors import ModelError, NotAllowed
from spatl.extensions.references import arguments_for, is_reference
from spatl.models import MODELS
from spatl.models.build import offered_sizes
from spatl.seeding import seeded_globals
from spatl.tensors.inputs import one_tensor
from spatl.training.step_weight import ADAPTIVE_OPTIMIZERS

COPIES: Final = 12
"""Copies of the network's numbers: the one built, the one trained, its gradients and momentum; the encoder as built, as
received, as trained, the update, c, c_i, the c_i to come, and what is packed."""
_PASSES = 3  # outputs of layers, of what is between them, and their gradients
_EVALUATED_AT_ONCE = 1024  # as `spatl.training.evaluate`
_BYTES = 4
_OF_OWN_MODELS = 3  # as kept before and after, and one that is put back; MOON's other two
_NOBODY = -1  # who trains as the config says for all


def check_memory(config: ExperimentConfig, dataset: Dataset, most_bytes: int) -> None:
    """Raise where a run takes more memory than it may.

    Args:
        config: The run.
        dataset: Its data, which are loaded by now.
        most_bytes: What it may take.

    Raises:
        NotAllowed: It takes more, about.
        ModelError: An option of the network is wrong.
    """
    needed = 2 * dataset.inputs.nbytes + _bytes_of_network(config, dataset, most_bytes)
    if needed > most_bytes:
        raise _too_much(f"about {needed / 1e6:,.0f}", most_bytes)


def _too_much(asked: str, most_bytes: int) -> NotAllowed:
    return NotAllowed.of("limits.memory_megabytes (model, training.batch_size)", asked, f"{most_bytes / 1e6:,.0f}")


def _bytes_of_network(config: ExperimentConfig, dataset: Dataset, most_bytes: int) -> int:
    if is_reference(config.model.name) or config.model.name not in MODELS:
        return 0
    factory = MODELS[config.model.name].factory
    shape = one_tensor(dataset.inputs).shape[1:]
    sizes = offered_sizes(factory, dataset.sizes(), config.model.options)
    arguments = arguments_for(
        factory, what=f"model {config.model.name!r}", offered=sizes, options=config.model.options, given_by="data",
        section="model.options", error=ModelError,
    )  # fmt: skip
    outputs: list[int] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append(output.numel() // 2)

    try:
        with seeded_globals(config.seed, "model"), torch.device("meta"), torch.no_grad():
            model = factory(**arguments).eval()
            for module in model.modules():
                if next(module.children(), None) is None:
                    module.register_forward_hook(note)
            with _Shapes():
                model(torch.empty((2, *shape)))
    except ModelError:
        raise
    except Exception as error:  # sizes that no tensor can have
        raise _too_much("a network whose size cannot be told", most_bytes) from error
    numbers = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    copies = COPIES + (config.training.optimizer in ADAPTIVE_OPTIMIZERS)  # which have two moments of each
    copies += _OF_OWN_MODELS if config.row.personal or config.row.contrasts else 0
    batch_size = max(config.training_of(client).batch_size for client in (*config.training.clients, _NOBODY))
    trained = sum(outputs) * _PASSES * min(batch_size, len(dataset))
    evaluated = max(outputs, default=0) * _PASSES * min(_EVALUATED_AT_ONCE, len(dataset))
    return _BYTES * (copies * numbers + max(trained, evaluated))


class _Shapes(TorchFunctionMode):
    """Shapes alone of what layers give: on `meta` PyTorch would import its compiler for them, more than a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Return what the layer gives, without its values."""
        shape: Callable[..., Any] = _SHAPES.get(func, func)
        return shape(*args, **(kwargs or {}))


def _same(inputs: Tensor, *others: object, **named: object) -> Tensor:
    return inputs


def _multiplied(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return inputs.new_empty((*inputs.shape[:-1], len(weight)))


def _convolved(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """Return room for a convolution, as `nn.Conv2d` has it done."""
    of_sides = zip(inputs.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sides = [(side + 2 * added - apart * (kernel - 1) - 1) // step + 1 for side, kernel, step, added, apart in of_sides]
    return inputs.new_empty((len(inputs), len(weight), *sides))


def _averaged(inputs: Tensor, sides: int | Sequence[int]) -> Tensor:
    both = (sides, sides) if isinstance(sides, int) else sides
    return inputs.new_empty((*inputs.shape[:2], *both))


def _pooled(inputs: Tensor, side: int, stride: int, padding: int, **named: object) -> Tensor:
    sides = ((each + 2 * padding - side) // stride + 1 for each in inputs.shape[2:])
    return inputs.new_empty((*inputs.shape[:2], *sides))


_SHAPES: Final[Mapping[object, Callable[..., Tensor]]] = {
    functional.relu: _same, functional.batch_norm: _same, Tensor.add: _same, Tensor.__add__: _same,
    functional.linear: _multiplied, functional.conv2d: _convolved, functional.max_pool2d: _pooled,
    functional.adaptive_avg_pool2d: _averaged,
}  # fmt: skip
"""The layers of this project's own networks; what is not here PyTorch does."""
