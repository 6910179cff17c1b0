"""Findings of a client: what the federation's model does on its own examples, in numbers that can be compared.

They are all that the search for a client whose data are faulty needs of it (`spatl.diagnosis`): moments of the profiles
of its validation split, and by class the loss, the mean profile and the mean of what the last linear layer reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spatl.data import Examples
from spatl.errors import ModelError
from spatl.saliency.filters import Filters
from spatl.saliency.moments import Moments
from spatl.saliency.profiles import Progress, in_eval_mode, profiles

_CHUNK = 256
WIDEST = 4096
"""Numbers of a prototype, at most; a network whose last linear layer reads more has none."""
_LARGEST = 1e30  # of any number, so that sums over clients, and squares of them, stay far inside float64
_MOST_EXAMPLES = 1 << 40
_LEAST = 1e-37  # float32 has fewer digits below it
_ROUNDING = 1e-4  # of what must be equal but for float32, relative


@dataclass(frozen=True, eq=False)
class Findings:
    """Account of a model on one client's validation split, K classes and F filters.

    Attributes:
        moments: Of the profiles of all its examples.
        counts: int64 [K], examples of each class.
        losses: float64 [K], the sum of their cross-entropies.
        correct: int64 [K], how many are classified correctly.
        class_profiles: float32 [K, F], the mean profile of each class; 0 for one without examples.
        prototypes: float32 [K, D], the mean over each class of what the last linear layer reads; 0 for one without
            examples, or with so few that the client keeps theirs to itself (`without_small_classes`). D is 0 for a
            network without such a layer.
        labels: int64 [K], training examples of each class.
    """

    moments: Moments
    counts: Tensor
    losses: Tensor
    correct: Tensor
    class_profiles: Tensor
    prototypes: Tensor
    labels: Tensor

    def without_small_classes(self, fewest: int | None) -> "Findings":
        """Return the findings without the prototypes of classes of few examples, for such a one shows single examples.

        Args:
            fewest: Examples of a class whose prototype stays, at least; None for no prototypes at all.
        """
        if fewest is None:
            return replace(self, prototypes=self.prototypes[:, :0])
        return replace(self, prototypes=self.prototypes.where((self.counts >= fewest)[:, None], 0.0))


def fault_of(findings: Findings, *, num_filters: int, num_classes: int) -> str | None:
    """Return why findings cannot be those of any client; None where they hold together.

    Args:
        findings: From another machine, or from a file.
        num_filters: F.
        num_classes: K.
    """
    moments, counts, has_rows = findings.moments, findings.counts, findings.prototypes.dim() == 2
    shapes = {
        "means": (moments.means, (num_filters,)), "squares": (moments.squares, (num_filters,)),
        "counts": (counts, (num_classes,)), "losses": (findings.losses, (num_classes,)),
        "correct": (findings.correct, (num_classes,)), "labels": (findings.labels, (num_classes,)),
        "class profiles": (findings.class_profiles, (num_classes, num_filters)),
        "prototypes": (findings.prototypes, (num_classes, findings.prototypes.shape[1] if has_rows else 0)),
    }  # fmt: skip
    for name, (values, shape) in shapes.items():
        if tuple(values.shape) != shape:
            return f"the {name} are of shape {list(values.shape)}, expected {list(shape)}"
        largest = _LARGEST if values.is_floating_point() else _MOST_EXAMPLES
        if not bool((values.abs() <= largest).all()):  # NaN is not, either
            return f"the {name} must be finite and at most {largest:g} in size"
        if name != "prototypes" and not bool((values >= 0).all()):
            return f"the {name} must not be below 0"
    if moments.count < 1 or int(counts.sum()) != moments.count:
        return f"the classes have {int(counts.sum())} examples together, the profiles {moments.count}, expected as many"
    if bool((findings.correct > counts).any()):
        return "a class has more correct predictions than examples"
    empty = counts == 0
    if any(bool(each[empty].any()) for each in (findings.losses, findings.class_profiles, findings.prototypes)):
        return "a class without examples has a loss, a profile or a prototype"
    # Of numbers that are not negative, with sum n m: the sum of their squares is (n m)^2 at most.
    most = float(moments.count) * (moments.count - 1) * moments.means.square()
    if bool((moments.squares > most * (1 + _ROUNDING)).any()):
        return "the profiles deviate further from their means than numbers that are not negative can"
    means = counts.double() @ findings.class_profiles.double() / moments.count
    if bool(((means - moments.means).abs() > _ROUNDING * moments.means + _LEAST).any()):
        return "the profiles of the classes do not have the mean of all profiles"
    return None


def findings_of(
    model: nn.Module, examples: Examples, filters: Filters, training_labels: Tensor, *, num_classes: int,
    progress: Progress | None = None,
) -> Findings:  # fmt: skip
    """Return the findings of a model on some examples; the network stays as it was.

    Args:
        model: The network, which returns logits `[B, K]`.
        examples: A client's validation split, on the network's device; at least one.
        filters: Of the network.
        training_labels: int64 [n], of its training split.
        num_classes: K.
        progress: As of `profiles`.

    Raises:
        ModelError: There is no example, or the network has diverged.
    """
    found = profiles(model, examples, filters, progress=progress)
    labels = examples.targets.cpu()
    counts = torch.bincount(labels, minlength=num_classes)
    losses = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels, found.losses.double())
    correct = torch.bincount(labels[found.predictions == labels], minlength=num_classes)
    return Findings(
        moments=Moments.of(found.absolute),
        counts=counts,
        losses=losses,
        correct=correct,
        class_profiles=_class_means(found.absolute, labels, counts),
        prototypes=_class_means(features(model, examples.images), labels, counts),
        labels=torch.bincount(training_labels.cpu(), minlength=num_classes),
    )


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return float32 [N, D] on the CPU: what the last linear layer reads of each example; the network stays as it is.

    Args:
        model: The network.
        images: float32 [N, C, H, W], on its device.
    """
    found = list[Tensor]()
    with in_eval_mode(model), torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            with _read_by_linear_layers(model) as read:
                model(part)
            last = read[-1].float().cpu() if read else torch.zeros(len(part), 0)
            if len(last) != len(part) or last.dim() != 2 or last.shape[1] > WIDEST:
                last = torch.zeros(len(part), 0)
            found.append(last)
    return torch.cat(found)


@contextmanager
def _read_by_linear_layers(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield what linear layers read inside the block, the last of them alone."""
    read = list[Tensor]()

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        read[:] = [inputs[0].detach()]

    handles = [each.register_forward_pre_hook(keep) for each in model.modules() if isinstance(each, nn.Linear)]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _class_means(values: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    sums = torch.zeros(len(counts), values.shape[1], dtype=torch.float64).index_add_(0, labels, values.double())
    return (sums / counts.clamp(min=1)[:, None]).float()


def check_examples(number: int, whose: str) -> None:
    """Raise unless there are examples to find anything out with.

    Args:
        number: Of the validation split.
        whose: How the client is called in the error.

    Raises:
        ModelError: There is none.
    """
    if number < 1:
        raise ModelError(f"{whose} has no validation examples, and saliency needs one at least: raise "
                         "data.validation_fraction")  # fmt: skip
