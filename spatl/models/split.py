"""Cut between the shared encoder and the private predictor; no other module knows where it runs.

The user's network stays one `nn.Module` with its own `forward`. The cut is a tuple of submodule names: what lies in
them is the predictor, which never leaves the client, and everything else is the encoder (SPATL, arXiv 2111.14345,
section 4). No function here treats a buffer as a parameter: what is trained and what is merely kept are always asked
for separately.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spatl.errors import ModelError, did_you_mean
from spatl.models.frozen import NORMALISATION, keeps_statistics


@dataclass(frozen=True)
class Split:
    """Division of a model's names between the encoder and the private predictor; made and checked by `make_split`.

    All dictionaries use the model's own names. A tensor that appears under several names (tied weights) is listed
    once, under its first name in module order, as `nn.Module.named_parameters` does.

    Attributes:
        cut: The submodules that form the predictor; `()` means that nothing is private and all is encoder.
    """

    cut: tuple[str, ...]

    def in_predictor(self, name: str) -> bool:
        """Return whether the parameter, buffer or module called `name` lies in the predictor."""
        return any(name == part or name.startswith(f"{part}.") for part in self.cut)

    def encoder_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The encoder's parameters that require a gradient now, in module order; never a buffer."""
        return {name: value for name, value in _trainable(model).items() if not self.in_predictor(name)}

    def predictor_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The predictor's parameters that require a gradient now, in module order; never a buffer."""
        return {name: value for name, value in _trainable(model).items() if self.in_predictor(name)}

    def encoder_statistics(self, model: nn.Module) -> dict[str, Tensor]:
        """The running means and variances of the encoder's normalisation layers, but for those that are frozen.

        Other buffers are left out: integer ones (batch counters, index tables) cannot be averaged, and floating ones
        (masks, position tables) are constants, which may be infinite.
        """
        layers = [
            name
            for name, module in model.named_modules()
            if isinstance(module, NORMALISATION) and not keeps_statistics(module)
        ]
        wanted = {f"{layer}.{kind}" if layer else kind for layer in layers for kind in ("running_mean", "running_var")}
        return {
            name: buffer for name, buffer in model.named_buffers() if name in wanted and not self.in_predictor(name)
        }

    def private_state(self, model: nn.Module, *, statistics: bool) -> dict[str, Tensor]:
        """Return a copy of the private part: the predictor, and what else a client does not share.

        Args:
            model: The network.
            statistics: Whether the encoder's buffers, floating and integer, are the client's own (`batch_norm: local`).

        Returns:
            Detached clones of the predictor's parameters, frozen ones included, and of all its buffers; with
            `statistics` also of all buffers of the encoder. Never an encoder parameter.
        """
        tensors = self._private_tensors(model, statistics=statistics)
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def load_private_state_(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy what `private_state` returned back into the model, in place; nothing is copied if anything is wrong.

        Whether the state holds the encoder's buffers is read off its names: it holds all of them or none.

        Raises:
            ModelError: If a name is missing or unknown, or a tensor's shape or dtype is not the model's.
        """
        tensors = self._private_tensors(model, statistics=True)
        if unknown := [name for name in state if name not in tensors]:
            raise ModelError(f"the private state holds {_some(unknown)}, which this model does not keep to itself")
        if all(self.in_predictor(name) for name in state):
            tensors = self._private_tensors(model, statistics=False)
        if missing := [name for name in tensors if name not in state]:
            raise ModelError(f"the private state lacks {_some(missing)}")
        for name, tensor in tensors.items():
            if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
                raise ModelError(
                    f"the private state's {name!r} must be {list(tensor.shape)} of {tensor.dtype}, "
                    f"got {list(state[name].shape)} of {state[name].dtype}"
                )
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(state[name])

    def _private_tensors(self, model: nn.Module, *, statistics: bool) -> dict[str, Tensor]:
        """Return the model's own tensors behind `private_state`."""
        tensors: dict[str, Tensor] = {
            name: parameter for name, parameter in model.named_parameters() if self.in_predictor(name)
        }
        for name, buffer in model.named_buffers():
            if statistics or self.in_predictor(name):
                tensors[name] = buffer
        return tensors


def make_split(model: nn.Module, cut: Sequence[str]) -> Split:
    """Check that a cut fits a model, and return it as a `Split`.

    Args:
        model: The network, with the parameters that will be trained requiring a gradient.
        cut: Names of submodules at any depth, e.g. `["fc"]` or `["head.norm", "head.fc"]`; empty for no predictor.

    Raises:
        ModelError: If a name is not a submodule, a trainable parameter lies on both sides (tied weights), a side has
            nothing to train, or a lazy parameter has no shape yet.
    """
    split = Split(known_cut(model, cut))
    _refuse_lazy(model)
    _refuse_ties_across(split, model)
    if not split.encoder_parameters(model):
        raise ModelError(f"the cut {list(split.cut)} leaves no trainable parameter to the encoder (configs: model.cut)")
    if split.cut and not split.predictor_parameters(model):
        raise ModelError(f"the predictor {list(split.cut)} has no trainable parameter (configs: model.cut)")
    return split


def everything_private(model: nn.Module) -> Split:
    """Return the cut that leaves nothing to the encoder: all of a model is the client's own."""
    children = [name for name, _ in model.named_children()]
    own = [name for name, _ in (*model.named_parameters(recurse=False), *model.named_buffers(recurse=False))]
    return Split((*children, *own))


def known_cut(model: nn.Module, cut: Sequence[str]) -> tuple[str, ...]:
    """Return the cut as a tuple, all names of which are submodules of the model.

    Raises:
        ModelError: If one is not, or `cut` is anything but a sequence of strings.
    """
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in (names := _checked_cut(cut)):
        if name not in known:
            raise ModelError(
                f"the cut names {name!r}, which is not a submodule of {type(model).__name__}"
                f"{did_you_mean(name, known)}; its top-level submodules are {top_level_names(model)} (configs: "
                "model.cut)"
            )
    return names


def _checked_cut(cut: Sequence[str]) -> tuple[str, ...]:
    """Return the cut as a tuple; a bare string is refused, since its letters would be taken for names.

    Raises:
        ModelError: If `cut` is anything but a sequence of strings.
    """
    if isinstance(cut, str) or not isinstance(cut, Sequence) or not all(isinstance(name, str) for name in cut):
        raise ModelError(f"the cut must be a list of submodule names, e.g. ['fc'], got {cut!r} (configs: model.cut)")
    return tuple(cut)


def top_level_names(model: nn.Module) -> str:
    """The names of a model's direct submodules, as error messages list them."""
    return ", ".join(name for name, _ in model.named_children()) or "none"


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _refuse_lazy(model: nn.Module) -> None:
    lazy = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if lazy:
        raise ModelError(f"{_some(lazy)} of {type(model).__name__} has no shape yet: give its lazy layers their sizes")


def _refuse_ties_across(split: Split, model: nn.Module) -> None:
    first_names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        first_name = first_names.setdefault(parameter, name)
        if split.in_predictor(first_name) != split.in_predictor(name):
            raise ModelError(
                f"{first_name!r} and {name!r} are one tied parameter on both sides of the cut {list(split.cut)}: "
                "it cannot be shared and private at once (configs: model.cut)"
            )


def _some(names: Sequence[str]) -> str:
    """Return the first few names, quoted, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
