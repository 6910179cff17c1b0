"""Weights of a network by its own names, in safetensors, which hold numbers and nothing that could run."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from spatl.errors import ModelError, SpatlError, did_you_mean
from spatl.models.split import Split

logger = logging.getLogger(__name__)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors by its own names, on the CPU; what else its state dict may hold is left out."""
    found = network.state_dict().items()
    return {name: each.detach().cpu() for name, each in found if isinstance(each, Tensor)}


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as safetensors; those that share memory are written one by one."""
    return save({name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()})


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file of weights, hexadecimal.

    Raises:
        SpatlError: It cannot be read.
    """
    return hashlib.sha256(_bytes_of(path)).hexdigest()


def read_weights(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file.

    Args:
        path: The file.
        sha256: Its checksum, hexadecimal; None where nobody knows it.

    Raises:
        SpatlError: It is not there, or damaged, or not the one of the checksum.
    """
    data = _bytes_of(path)
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise SpatlError(f"{path} is not as it was written: its SHA-256 is another than {sha256}; put the file back")
    return weights_in(data, where=str(path))


def weights_in(data: bytes, *, where: str) -> dict[str, Tensor]:
    """Return the tensors by name in the bytes of a safetensors file.

    Raises:
        SpatlError: They are none, or damaged; the message says `where` they are from.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise SpatlError(f"{where} is no safetensors file, or it is damaged: {error}") from error


def load_weights_(network: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Copy tensors into a network, in place; nothing is copied if anything is wrong.

    Args:
        network: The network.
        tensors: By its own names, all of them.
        where: Where they are from, for messages.

    Raises:
        ModelError: A name is missing or unknown, or a shape is another.
    """
    own = state_of(network)
    _check_known(own, tensors, where)
    for name in own:  # in the network's order: a file's is any
        if name in tensors and own[name].shape != tensors[name].shape:
            raise _misfit(name, own[name], tensors[name], where)
    if missing := [name for name in own if name not in tensors]:
        raise ModelError(f"{where} lacks {', '.join(map(repr, missing[:3]))}{' and others' if missing[3:] else ''}")
    network.load_state_dict(dict(tensors), strict=False)


def start_from_(network: nn.Module, tensors: Mapping[str, Tensor], *, predictor: Split, where: str) -> None:
    """Copy tensors into a network that is to be trained on, in place; nothing is copied if anything is wrong.

    What the file lacks stays as it was. So does, with a warning, a predictor of another shape: other data have other
    classes.

    Args:
        network: The network.
        tensors: By its own names.
        predictor: The cut, which says what of the network is its predictor.
        where: Where they are from, for messages.

    Raises:
        ModelError: A name is unknown, or a shape of the encoder is another.
    """
    own = state_of(network)
    _check_known(own, tensors, where)
    other = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    for name in other:
        if not predictor.in_predictor(name):
            raise _misfit(name, own[name], tensors[name], where)
    taken = dict(tensors)
    if other:
        taken = {name: tensor for name, tensor in tensors.items() if not predictor.in_predictor(name)}
        logger.warning(
            "%s: %s has another shape there, so that the predictor starts from the seed", where, repr(other[0])
        )
    network.load_state_dict(taken, strict=False)


def _check_known(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    for name in sorted(tensors):
        if name not in own:
            raise ModelError(f"{where} holds {name!r}, which the network does not have{did_you_mean(name, own)}")


def _misfit(name: str, own: Tensor, found: Tensor, where: str) -> ModelError:
    return ModelError(f"{where}: {name!r} must be {list(own.shape)}, got {list(found.shape)}")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SpatlError(f"there is no file {path}") from error
    except OSError as error:
        raise SpatlError(f"cannot read {path}: {error.strerror}") from error
