"""Copies of all that a network holds: made, put back, and compared between machines.

Parameters and buffers are not all that a forward pass depends on. A user's module may count steps in an integer, keep a
moving average in a list, or scale by a tensor that was never registered: plain attributes, which no state dict has.
Where several clients train on one instance, all of it is put back between them; where each builds its own, digests tell
whether they built the same. Out of reach is what lies outside the module: globals, closures, class attributes.
"""

import copy
import hashlib
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spatl.errors import ModelError
from spatl.models.frozen import NORMALISATION, keeps_statistics
from spatl.models.split import Split

DIGEST_BYTES: Final = 8

_INTERNAL: Final = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}
_ATOMS: Final = (
    int, float, complex, bool, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size, types.FunctionType,
    types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip
_PLAIN: Final = frozenset({int, float, bool, str, type(None)})


class _DetachedCopies(TorchFunctionMode):
    """Mode of `copy.deepcopy` that also copies tensors that a computation made, without its graph.

    Modules keep such tensors: an activation they remember, a weight that a hook computes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def duplicate(model: nn.Module) -> nn.Module:
    """Return a copy of a network that shares nothing with it.

    Raises:
        ModelError: It holds something that cannot be copied.
    """
    try:
        with _DetachedCopies():
            return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(f"the model cannot be copied: {type(error).__name__}: {error}") from error


def restore_(model: nn.Module, source: nn.Module) -> None:
    """Make a network what another of the same structure is, in place: every tensor, plain attribute and mode.

    Parameters keep their identity, and lose their gradients; all else is new. Hooks stay.

    Raises:
        ModelError: The network has other modules or parameters than the other.
    """
    pairs = _pairs_of(model, source)
    if pairs is None:
        raise ModelError("the network has other modules or parameters than the one it is to become")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    memo: dict[int, Any] = {id(theirs): own for own, theirs in pairs}
    with torch.no_grad():
        into, values = list[Tensor](), list[Tensor]()
        for own, theirs in pairs:
            for name, parameter in theirs._parameters.items():
                kept = own._parameters[name]
                if parameter is None or kept is None:
                    continue
                into.append(kept)
                values.append(parameter)
                kept.grad = None
                kept.requires_grad_(parameter.requires_grad)
                memo[id(parameter)] = kept
        if into:
            torch._foreach_copy_(into, values)
        for own, theirs in pairs:
            for name, buffer in theirs._buffers.items():
                if buffer is not None and id(buffer) not in memo:
                    memo[id(buffer)] = buffer.detach().clone().to(device)
                own._buffers[name] = None if buffer is None else memo[id(buffer)]
            own.training = theirs.training
    for own, theirs in pairs:
        _set_attributes_(own, _copied(_plain_attributes(theirs), memo))


def _pairs_of(model: nn.Module, source: nn.Module) -> list[tuple[nn.Module, nn.Module]] | None:
    """Return each module of a network with that of another of the same structure, once; None where it is another."""
    pairs, tied = dict[nn.Module, nn.Module](), dict[Tensor, Tensor]()
    waiting = [(model, source)]
    while waiting:
        own, theirs = waiting.pop()
        if theirs in pairs:
            if pairs[theirs] is not own:
                return None
            continue
        pairs[theirs] = own
        found = _children(own, theirs), _children(own, theirs, of="_parameters")
        if None in found:
            return None
        waiting += found[0] or []
        for mine, other in found[1] or []:
            if mine.shape != other.shape or tied.setdefault(other, mine) is not mine:
                return None
    if len(set(pairs.values())) != len(pairs) or len(set(tied.values())) != len(tied):
        return None  # what is one there is two here
    return [(own, theirs) for theirs, own in pairs.items()]


def _children(own: nn.Module, theirs: nn.Module, *, of: str = "_modules") -> list[tuple[Any, Any]] | None:
    """Return what two modules have under the same names, but for what is None in both; None where they differ."""
    mine, others = (getattr(each, of) for each in (own, theirs))
    if not isinstance(mine, dict) or not isinstance(others, dict):  # a compiled module's
        mine, others = dict(mine.items()), dict(others.items())
    if not mine and not others:  # of most
        return []
    if mine.keys() != others.keys() or any((mine[name] is None) != (other is None) for name, other in others.items()):
        return None
    return [(mine[name], other) for name, other in others.items() if other is not None]


def check_parts(model: nn.Module, source: nn.Module) -> None:
    """Raise unless a network still has the parts of another: names, shapes, dtypes, and what is trained.

    Raises:
        ModelError: It has not; the first part that differs is named.
    """
    if _same_parts(model, source):
        return
    before, now = _parts_of(source), _parts_of(model)
    for what in [*before, *now]:
        was, is_now = before.get(what, "not there"), now.get(what, "not there")
        if was != is_now:
            raise ModelError(
                f"the model changes its own parts in training: {what} was {was} and is {is_now}; make it when the "
                "model is built, and let it keep its shape"
            )


def _same_parts(model: nn.Module, source: nn.Module) -> bool:
    """Return whether networks have the same parts, without saying which ones they are."""
    pairs = _pairs_of(model, source)
    if pairs is None:
        return False
    for own, theirs in pairs:
        for kind in ("_parameters", "_buffers"):
            found = _children(own, theirs, of=kind)
            if found is None or any(_facts_of(mine) != _facts_of(other) for mine, other in found):
                return False
    return True


def _facts_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.requires_grad


def _parts_of(model: nn.Module) -> dict[str, str]:
    facts = {f"module {name!r}": "there" for name, _ in model.named_modules() if name}
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            trained = ", trained" if tensor.requires_grad else ""
            facts[f"{kind} {name!r}"] = f"{list(tensor.shape)} of {tensor.dtype}{trained}"
    return facts


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put the plain attributes of every module back afterwards."""
    before = [(module, _plain_attributes(module)) for module in model.modules()]
    if not all(_is_constant(value) for _, attributes in before for value in attributes.values()):
        memo: dict[int, Any] = {id(each): each for each in (*model.modules(), *model.parameters(), *model.buffers())}
        before = [(module, _copied(attributes, memo)) for module, attributes in before]
    try:
        yield
    finally:
        for module, attributes in before:
            _set_attributes_(module, attributes)


def digests_of_the_rest(model: nn.Module, split: Split, travelling: Iterable[str]) -> dict[str, bytes]:
    """Return a digest of everything a forward pass through the encoder depends on that no message carries, by name.

    That is frozen parameters, buffers, and the tensors and numbers among plain attributes. What a client gathers itself
    is left out: the predictor, and the running statistics of normalisation layers that are not frozen. So are texts,
    which may be paths.

    Args:
        model: A network as it was built.
        split: Its cut.
        travelling: The names of the tensors that messages carry.
    """
    travels = set(travelling)
    found: dict[str, bytes] = {}
    settings = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path, module in model.named_modules():
        if split.in_predictor(path):
            continue
        prefix = f"{path}." if path else ""
        tensors = dict(module.named_parameters(recurse=False))
        if not isinstance(module, NORMALISATION) or keeps_statistics(module):
            tensors |= dict(module.named_buffers(recurse=False))
        for name, tensor in tensors.items():
            if prefix + name not in travels and not split.in_predictor(prefix + name):
                found[prefix + name] = digest_of(tensor)
        for name, value in _plain_attributes(module).items():
            if not _holds_numbers(value):
                continue
            if type(module).__module__.startswith("torch."):
                settings.update(f"{prefix}{name}:".encode() + digest_of(value))
            else:
                found[prefix + name] = digest_of(value)
    return {**found, "(the settings of its layers)": settings.digest()}


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes but for those of every `nn.Module`; none of a compiled one."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    return {name: value for name, value in module.__dict__.items() if name not in _INTERNAL}


def _set_attributes_(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return
    for name in [each for each in module.__dict__ if each not in attributes and each not in _INTERNAL]:
        del module.__dict__[name]
    if attributes:
        module.__dict__.update(attributes)


def _copied(attributes: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """Return copies of values that may change, with what `memo` says in place of modules, parameters and buffers."""
    changing = {name: value for name, value in attributes.items() if not _is_constant(value)}
    if not changing:
        return dict(attributes)
    with _DetachedCopies():
        return attributes | copy.deepcopy(changing, memo)


def _is_constant(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is tuple:
        return all(_is_constant(each) for each in value)
    return isinstance(value, _ATOMS)


def _holds_numbers(value: Any) -> bool:
    """Return whether a value is a tensor, an array or a number, or holds one."""
    if isinstance(value, Mapping):
        return any(_holds_numbers(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_numbers(each) for each in value)
    return isinstance(value, Tensor | np.ndarray | int | float | complex)


def digest_of(value: Any) -> bytes:
    """Return a digest of the tensors and numbers in a value."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key, each in value.items():
            digest.update(f"{key!r}:".encode() + digest_of(each))
    elif isinstance(value, list | tuple):
        for each in value:
            digest.update(digest_of(each))
    elif isinstance(value, int | float | complex):
        digest.update(repr(value).encode())
    return digest.digest()
