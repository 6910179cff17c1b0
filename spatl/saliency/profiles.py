"""Profiles: for each example, how much its loss depends on each filter.

With L the cross-entropy of an example under its label, in eval mode, the profile is (Levin et al., arXiv 2108.01335)

    s_k = 1 / |w_k| * sum over the weights w of filter k of |dL/dw|

Beside it stands, at the same cost, the sum of (dL/dw) * w: to first order what L loses when the filter is switched off.
It has a sign: what is positive does harm.

The examples of a chunk are taken together (`spatl.saliency.gradients`), after the one of the first chunk that has the
highest loss was found to have, in each layer, the profile that plain differentiation gives it. (One that the network is
sure of has no gradient to compare.) A network for which that is not so is taken example by example.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatl.data import Examples
from spatl.errors import ModelError
from spatl.models.copies import attributes_kept
from spatl.models.frozen import modes_kept
from spatl.saliency.filters import Filters
from spatl.saliency.gradients import Unsupported, filter_gradients

logger = logging.getLogger(__name__)

_BATCH = 32
_AGREEMENT = 0.01  # an activation that is zero but for rounding may fall on the other side of its kink
_TINY = 1e-12

Progress = Callable[[int, int], None]
"""Called with the number of examples that are done, and that of all."""


@dataclass(frozen=True, eq=False)
class Profiles:
    """Profiles of examples.

    Attributes:
        absolute: float32 [N, F], the mean absolute gradient of each filter; none below 0.
        signed: float32 [N, F], the sum of gradient times weight: what the loss falls by without the filter.
        losses: float32 [N], the cross-entropy of each example.
        predictions: int64 [N], the class that the network says.
    """

    absolute: Tensor
    signed: Tensor
    losses: Tensor
    predictions: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.losses)

    def where(self, chosen: Tensor) -> "Profiles":
        """Return the profiles of some of the examples, by their numbers or a bool [N]."""
        return Profiles(self.absolute[chosen], self.signed[chosen], self.losses[chosen], self.predictions[chosen])


def profiles(
    model: nn.Module, examples: Examples, filters: Filters, *, batch_size: int = _BATCH,
    progress: Progress | None = None,
) -> Profiles:  # fmt: skip
    """Return the profile of each example; the network stays as it was.

    Args:
        model: The network, which returns logits `[B, K]`; it is taken in eval mode. Hooks on it count, such as a
            client's offset on the logits.
        examples: At least one, on the device of the network.
        filters: The network's, of `filters_of`.
        batch_size: Examples that are taken together, as memory allows: activations and their gradients are held.
        progress: Told after every chunk.

    Returns:
        Tensors on the CPU.

    Raises:
        ModelError: There is no example, or a loss is not finite.
    """
    if not len(examples):
        raise ModelError("expected at least one example to take a profile of, got none")
    _keep_freed_memory()
    found, take = list[Profiles](), _together
    for start in range(0, len(examples), batch_size):
        part = examples.at(slice(start, start + batch_size))
        if not start and not (batch := _checked(model, part, filters)):
            take = profiles_one_by_one
        found.append(batch if not start and batch else take(model, part, filters))
        if progress is not None:
            progress(start + len(part), len(examples))
    result = Profiles(
        *(
            torch.cat([getattr(each, name) for each in found])
            for name in ("absolute", "signed", "losses", "predictions")
        )
    )
    if not bool(result.losses.isfinite().all() and result.absolute.isfinite().all()):
        raise ModelError("the loss of an example, or its gradient, is not finite: this network has diverged")
    return result


def profiles_one_by_one(model: nn.Module, examples: Examples, filters: Filters) -> Profiles:
    """Return what `profiles` does by plain differentiation, one example at a time.

    Args:
        model: As of `profiles`; so are the others.
        examples: Likewise.
        filters: Likewise.
    """
    rows, parameters = list[tuple[Tensor, ...]](), dict(model.named_parameters())
    names = [layer.weight for layer in filters.layers]
    with in_eval_mode(model), _differentiable([parameters[name] for name in names]) as weights:
        for number in range(len(examples)):
            logits = model(examples.images[number : number + 1]).float()
            loss = F.cross_entropy(logits, examples.targets[number : number + 1])
            found = torch.autograd.grad(loss, weights, materialize_grads=True)  # zeros where a layer is not used
            gradients = dict(zip(names, found, strict=True))
            absolute, signed = filters.absolute_means(gradients), filters.inner_products(gradients, parameters)
            rows.append((absolute.float(), signed.detach().float(), loss.detach(), logits[0].argmax()))
    absolute, signed, losses, predictions = (torch.stack(each).cpu() for each in zip(*rows, strict=True))
    return Profiles(absolute, signed, losses, predictions)


def _together(model: nn.Module, examples: Examples, filters: Filters) -> Profiles:
    """Return the profiles of a chunk of examples by one pass.

    Raises:
        Unsupported: The network's layers cannot be taken like that.
    """
    results = list[Tensor]()

    def loss() -> Tensor:
        logits = model(examples.images).float()
        losses = F.cross_entropy(logits, examples.targets, reduction="none")
        results[:] = losses.detach().cpu(), logits.argmax(1).cpu()
        return losses.sum()

    with in_eval_mode(model), torch.enable_grad():
        absolute, signed = filter_gradients(model, loss, filters)
    if len(absolute) != len(examples):
        raise Unsupported("a layer sees another batch than the network")
    losses, predictions = results
    return Profiles(absolute.float().cpu(), signed.float().cpu(), losses, predictions)


def _checked(model: nn.Module, examples: Examples, filters: Filters) -> Profiles | None:
    """Return the profiles of a chunk taken together; None where one of them is another than it is alone."""
    try:
        found = _together(model, examples, filters)
    except (Unsupported, RuntimeError) as error:
        logger.info("this network is taken example by example, which is slower: %s", error)
        return None
    place = int(found.losses.argmax())
    alone = profiles_one_by_one(model, examples.at(slice(place, place + 1)), filters)
    pairs = [(alone.signed[0], found.signed[place]), (alone.losses[0], found.losses[place])]
    pairs += [(alone.absolute[0, each.places], found.absolute[place, each.places]) for each in filters.layers]
    for own, other in pairs:
        if not float((own - other).norm()) <= _AGREEMENT * float(own.norm()) + _TINY:
            logger.info("this network is taken example by example, which is slower: a profile is another in a batch")
            return None
    return found


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    """Let parameters have gradients inside the block, frozen ones too, but for those that cannot."""
    before = [each.requires_grad for each in parameters]
    try:
        with torch.enable_grad():
            for each in parameters:
                each.requires_grad_()
            yield parameters
    finally:
        for each, kept in zip(parameters, before, strict=True):
            each.requires_grad_(kept)


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed for what is made next, instead of giving it back to the system each time.

    Each chunk takes and frees the same few megabytes again and again, and pages that come anew have to be filled with
    zeros first: a third of the time. glibc keeps as much as the largest block that was ever freed, up to 32 MB; this
    one is never touched. Elsewhere it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a network in eval mode inside the block, and its modes and plain attributes back after it."""
    with modes_kept(model), attributes_kept(model):
        model.eval()
        yield
