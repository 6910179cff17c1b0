"""Models by name: those of the table that are built in, or any factory of the user's by "package.module:factory".

The choice by name happens here and nowhere else. All that a user can get wrong on the way is a `ModelError` of one
line; what went wrong inside the user's own code stays attached as its cause.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from spatl.errors import ModelError, told
from spatl.extensions.references import arguments_for, is_reference, resolve, row_of
from spatl.models.frozen import mark_frozen_
from spatl.models.split import known_cut, top_level_names
from spatl.models.table import MODEL_DOOR, MODELS, Factory
from spatl.seeding import seeded_globals

logger = logging.getLogger(__name__)


def build_model(
    name: str,
    *,
    cut: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int,
    **sizes: Any,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build a network whose initial weights are a function of the arguments alone.

    Args:
        name: A key of `MODELS`, or `"package.module:factory"`, where the factory is a class or function of the user's
            that returns an `nn.Module`.
        cut: The submodules that form the predictor, each of them one of the model. None takes the
            built-in model's own; empty means that nothing is private. Required for a user's model.
        options: Further keywords for the factory. A user's factory is given those of the data's sizes that its
            signature accepts, and every option, or the option is an error.
        seed: The run's seed. The global generators of torch, numpy and Python are seeded with it while the factory
            runs, and restored after.
        sizes: What the data say of the network: `num_classes`, and of images `in_channels` and `image_size`
            (`spatl.data.Dataset.sizes`).

    Returns:
        The model, on the device and in the mode its factory left it, and the cut in force. What the factory froze is
        marked (`spatl.models.frozen`); what `nn.DataParallel` or `torch.compile` wrapped is unwrapped.

    Raises:
        ModelError: If the name, the cut or an option is wrong, or the factory fails.

    Example:
        >>> model, cut = build_model("resnet20", num_classes=10, in_channels=3, image_size=32, seed=1)
        >>> split = make_split(model, cut)
    """
    if is_reference(name):
        # Imported before the seed is set: a module that draws numbers on its first import would shift the weights.
        factory, cut_in_force = resolve(name, MODEL_DOOR, accepts=_is_factory), cut
    else:
        entry = row_of(name, MODELS, MODEL_DOOR)
        factory, cut_in_force = entry.factory, entry.cut if cut is None else cut
        if entry.takes_images and "in_channels" not in sizes:
            raise ModelError(
                f"the model {name!r} takes images [N, C, H, W], got examples of {sizes.get('input_shape')}: take the "
                'model "mlp", or "package.module:factory" for one of your own (configs: model.name)'
            )
    arguments = arguments_for(
        factory, what=f"model {name!r}", offered=offered_sizes(factory, sizes, options or {}), options=options,
        given_by="data", section="model.options", unknown=_unknown(sizes), error=ModelError,
    )  # fmt: skip
    with seeded_globals(seed, "model"):
        model = _made_by(factory, name, arguments)
    model, wrappers = _unwrapped(model)
    if wrappers:
        logger.warning(
            "model %s: taken out of %s; a client has one device, and runs its layers one by one", name, wrappers
        )
        cut_in_force = cut_in_force and _without_wrappers(cut_in_force)
    _mark_frozen_(model, name)
    return model, known_cut(model, _given_cut(cut_in_force, model, name))


def _unknown(sizes: Mapping[str, Any]) -> dict[str, str]:
    """Return why the data do not say some of what factories ask for."""
    if "input_shapes" in sizes:
        return dict.fromkeys(_OF_ONE_INPUT, "which data of several inputs do not say (take input_shapes)")
    if "num_features" in sizes:
        return dict.fromkeys(_OF_TOKENS, "which data of floating point do not say: tokens are whole numbers (int64)")
    return {"num_features": "which tokens do not say: take num_tokens and length"} if "num_tokens" in sizes else {}


_OF_TOKENS: Final = ("num_tokens", "length")
_OF_ONE_INPUT: Final = ("input_shape", "num_features", "num_tokens", "length", "in_channels", "image_size")
_ALWAYS_OFFERED: Final = ("num_classes", "in_channels", "image_size")


def offered_sizes(factory: Factory, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the data's sizes a factory may be given: those that all get, and others that it asks for by name.

    One that takes any keyword is not given those; and an option goes before them.
    """
    try:
        named = set(inspect.signature(factory).parameters)
    except ValueError:
        named = set()
    return {name: value for name, value in sizes.items() if name in _ALWAYS_OFFERED or name in named - set(options)}


def _given_cut(cut: Sequence[str] | None, model: nn.Module, name: str) -> Sequence[str]:
    """Return a cut, if there is one.

    Raises:
        ModelError: There is none; the message lists the submodules.
    """
    if cut is None:
        raise ModelError(
            f"say which submodules of {name} form the private predictor with model.cut in the config, a list of names "
            f"([] for none); its top-level submodules are {top_level_names(model)}"
        )
    return cut


def _mark_frozen_(model: nn.Module, name: str) -> None:
    """Mark what the factory froze, and warn of a model that comes in eval mode.

    Raises:
        ModelError: It cannot be put in training mode.
    """
    try:
        frozen = mark_frozen_(model)
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be put in training mode: {told(error)}") from error
    if "" in frozen and not model.training:
        logger.warning(
            "the factory of model %s returns it in eval mode, and there it stays: nothing is dropped in training, and "
            "BatchNorm keeps its statistics; return it in training mode if that is not meant", name,
        )  # fmt: skip


def _is_factory(found: object) -> bool:
    return callable(found) and not isinstance(found, nn.Module)


def _made_by(factory: Factory, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**arguments)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"the factory of model {name!r} failed: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory of model {name!r} must return a torch.nn.Module, got {type(model).__name__}")
    return model


# By name: to import PyTorch's compiler takes longer than all else that a device imports.
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """Return a network without the wrappers around it and its parts, which change its names, and their names."""
    found: dict[str, None] = {}

    def bare(module: nn.Module) -> nn.Module:
        while (inner := _WRAPPERS.get(type(module).__name__)) is not None and hasattr(module, inner):
            found[type(module).__name__] = None
            module = getattr(module, inner)
        return module

    model = bare(model)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and bare(child) is not child:
                module._modules[name] = bare(child)
        if getattr(module, "_compiled_call_impl", None) is not None:
            found["nn.Module.compile"] = None
            module._compiled_call_impl = None
    return model, " and ".join(found)


def _without_wrappers(cut: Sequence[str]) -> Sequence[str]:
    """Return a cut without the names that wrappers add; what is no cut is left as it is, for others to refuse."""
    if isinstance(cut, str) or not all(isinstance(name, str) for name in cut):
        return cut
    return [".".join(part for part in name.split(".") if part not in _WRAPPERS.values()) for name in cut]
