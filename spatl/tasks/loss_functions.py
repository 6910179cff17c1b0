"""Loss functions of the tasks, `function(outputs, targets, reduction)`: the rows of `spatl.tasks.loss_table`."""

import torch.nn.functional as F
from torch import Tensor

from spatl.tasks.rows import IGNORED


def cross_entropy(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the cross-entropy of logits `[N, K]` and classes `[N]`."""
    return F.cross_entropy(outputs, targets, reduction=reduction)


def binary_cross_entropy(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the binary cross-entropy of logits `[N, K]` and labels `[N, K]`, in float32."""
    return F.binary_cross_entropy_with_logits(outputs.float(), targets, reduction=reduction)


def squared(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the squared errors of values `[N, K]`, in float32."""
    return F.mse_loss(outputs.float(), targets, reduction=reduction)


def absolute(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the absolute errors of values `[N, K]`, in float32."""
    return F.l1_loss(outputs.float(), targets, reduction=reduction)


def huber(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return Huber's loss of values `[N, K]`, in float32: squared up to 1, and then linear."""
    return F.huber_loss(outputs.float(), targets, reduction=reduction)


def token_cross_entropy(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Return the cross-entropy of the tokens that count; a batch without any has the loss 0, and not 0 / 0."""
    summed = "none" if reduction == "none" else "sum"
    loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction=summed)
    if reduction == "none":
        return loss.reshape(targets.shape)
    return loss / (targets != IGNORED).sum().clamp(min=1) if reduction == "mean" else loss
