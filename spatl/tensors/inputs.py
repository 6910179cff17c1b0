"""Inputs of examples: one tensor of any shape, or several with names, which a network takes as keywords."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from spatl.errors import DataError


class NamedInputs(dict[str, Tensor]):
    """Tensors by name, each with one row `[N, ...]` per example; rows are taken from all of them at once.

    A network is called with it as with a tensor, `network(inputs)`, and its `forward` gets the tensors as keywords
    (`spatl.models.inputs.take_inputs_`).

    Args:
        tensors: At least one, all with the same N.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)

    def __getitem__(self, places: "str | int | slice | Tensor") -> "Tensor | NamedInputs":  # type: ignore[override]
        """Return the tensor of a name, or the same names with some rows of each tensor."""
        if isinstance(places, str):
            return self.tensor(places)
        return self.each(lambda tensor: tensor[places])

    def __len__(self) -> int:
        """Return the number of examples, as of a tensor."""
        return len(next(iter(self.values()), ()))

    def tensor(self, name: str) -> Tensor:
        """Return the tensor of a name."""
        return super().__getitem__(name)

    def each(self, function: Callable[[Tensor], Tensor]) -> "NamedInputs":
        """Return what a function makes of each tensor, under the same names."""
        return NamedInputs({name: function(tensor) for name, tensor in self.items()})

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.nbytes for each in self.values())

    def to(self, device: torch.device | str) -> "NamedInputs":
        """Return the same inputs on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def tensor_split(self, parts: int) -> "tuple[NamedInputs, ...]":
        """Return so many parts of consecutive rows, of equal length as near as can be."""
        split = {name: each.tensor_split(parts) for name, each in self.items()}
        return tuple(NamedInputs({name: each[part] for name, each in split.items()}) for part in range(parts))


Inputs = Tensor | NamedInputs
"""Inputs of some examples, `[N, ...]`."""


def parts_of(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of some inputs with its name, which is empty for the only one."""
    if isinstance(inputs, NamedInputs):
        yield from inputs.items()
    else:
        yield "", inputs


def one_tensor(inputs: Inputs) -> Tensor:
    """Return inputs that are one tensor, as images are.

    Raises:
        DataError: They are several, with names.
    """
    if isinstance(inputs, NamedInputs):
        raise DataError(f"this works on images, or other examples of one tensor, got {shapes_of(inputs)}")
    return inputs


def joined_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Return the rows of all parts, which are at least one and alike, one after the other."""
    first = parts[0]
    if isinstance(first, NamedInputs):
        named = [part for part in parts if isinstance(part, NamedInputs)]
        return NamedInputs({name: torch.cat([part.tensor(name) for part in named]) for name in first})
    return torch.cat([cast(Tensor, part) for part in parts])


def shapes_of(inputs: Inputs) -> str:
    """Return the shape and dtype of each tensor, as a message has it."""
    return ", ".join(
        f"{name + ' ' if name else ''}{str(each.dtype).removeprefix('torch.')} {list(each.shape)}"
        for name, each in parts_of(inputs)
    )


def first_of(inputs: Inputs) -> Inputs:
    """Return the first of some inputs, `[1, ...]`, on the CPU, floating point as float32."""

    def first(tensor: Tensor) -> Tensor:
        return tensor[:1].to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)

    return inputs.each(first) if isinstance(inputs, NamedInputs) else first(inputs)


def inputs_like(inputs: Inputs, number: int, draw: Callable[[torch.Size], Tensor]) -> Inputs:
    """Return so many inputs like the first of some: floating point as `draw` makes it, whole numbers repeated."""

    def like(tensor: Tensor) -> Tensor:
        repeated = tensor[:1].expand(number, *tensor.shape[1:])
        return draw(repeated.shape).to(tensor.dtype) if tensor.is_floating_point() else repeated

    return inputs.each(like) if isinstance(inputs, NamedInputs) else like(inputs)


def sides_of(inputs: Inputs) -> str:
    """Return the shape of one example, as people write it."""
    return ", ".join(
        f"{name + ' ' if name else ''}{' x '.join(map(str, each.shape[1:]))}" for name, each in parts_of(inputs)
    )


def finite_rows(inputs: Inputs) -> Tensor:
    """Return which examples have no NaN and no infinity, bool [N] on the CPU."""
    rows = [each.isfinite().flatten(1).all(1).cpu() for _, each in parts_of(inputs)]
    return torch.stack(rows).all(0)
