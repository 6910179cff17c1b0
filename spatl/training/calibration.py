"""A private offset on the logits, a client's own class frequencies, so that the whole network can be shared.

Clients disagree about the predictor mostly because they see different classes. That part a client need not learn: it
counts its training labels. With K classes, n_c of its n training examples in class c, strength tau and smoothing s, it
adds

    b_c = tau * log((n_c + s) / (n + K * s)) + tau * log K

to the logit of class c, in training and in evaluation alike. What the shared network then learns is free of the
clients' class frequencies, and each client's own come back where it predicts: logit adjustment (Menon et al. 2021,
arXiv 2007.07314), also known as balanced softmax (Ren et al. 2020, arXiv 2007.10740); in federated training, with
another offset, FedLC (Zhang et al. 2022, arXiv 2209.00189). Theirs correct the loss and predict without the offset,
for test data of balanced classes; a client here predicts on data like its own, and keeps it. The term log K makes the
offset of equal counts zero and changes no probability. Smoothing keeps classes possible that a client has never seen.

The offset is computed anew from the client's own labels whenever it is needed: it is neither stored nor sent.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spatl.tasks.targets import TASKS, TaskName


def class_offset(labels: Tensor, *, num_classes: int, strength: float, smoothing: float) -> Tensor:
    """Return b, float32 [K] on the device of the labels.

    Args:
        labels: int64 [n], of a client's training split.
        num_classes: K.
        strength: tau, at least 0; 1 for the client's smoothed class frequencies as they are.
        smoothing: s > 0, how many examples are added to every class.
    """
    # On the CPU, where float64 always is: the offset is then the same on every device.
    counts = torch.bincount(labels.cpu(), minlength=num_classes).double()
    ratios = num_classes * (counts + smoothing) / (len(labels) + num_classes * smoothing)
    return (strength * ratios.log()).float().to(labels.device)


def label_offset(labels: Tensor, *, strength: float, smoothing: float) -> Tensor:
    """Return what is added to the logits of labels that are each 0 or 1, float32 [K] on the device of the labels.

    Of a label that n_k of a client's n training examples have, tau * log((n_k + s) / (n - n_k + s)): its smoothed log
    odds, 0 for one that half of them have. The shared network is then free of how often clients see a label, as that of
    a classification is of how often they see a class.

    Args:
        labels: float32 [n, K], 0 or 1, of a client's training split.
        strength: tau.
        smoothing: s > 0.
    """
    counts = labels.cpu().double().sum(0)
    odds = (counts + smoothing) / (len(labels) - counts + smoothing)
    return (strength * odds.log()).float().to(labels.device)


def target_offset(
    task: TaskName, targets: Tensor, *, num_classes: int, strength: float, smoothing: float
) -> Tensor | None:
    """Return what a client adds to its logits, float32 [K]; None for a task whose targets have no frequencies."""
    if not TASKS[task].frequencies:
        return None
    if TASKS[task].labels:
        return class_offset(targets, num_classes=num_classes, strength=strength, smoothing=smoothing)
    return label_offset(targets, strength=strength, smoothing=smoothing)


@contextmanager
def calibrated(model: nn.Module, offset: Tensor | None) -> Iterator[None]:
    """Add an offset [K] to whatever logits [N, K] the model returns, until the context ends; None adds nothing.

    It is a forward hook: everybody who calls the model sees it, by `functional_call` or on a copy too. Logits in half
    precision become float32.
    """
    if offset is None:
        yield
        return

    def add(module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> Tensor:
        return logits + offset

    handle = model.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
