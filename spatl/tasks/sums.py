"""Sums that metrics follow from: what they add up over examples, and what becomes of it.

Sums of several clients add up to those of all their examples, so that a metric of the sums is the metric of the pooled
examples, which the mean over clients is not. A function here takes outputs float64 and targets of some examples, and
returns float64 `[S]`; one whose name begins with `value` takes `[S]` back and returns the metric, NaN where it is not
defined. K is the number of outputs.
"""

import math
from typing import Final

import torch
from torch import Tensor

from spatl.tasks.targets import IGNORED

_MOST_NATS: Final = 69.0  # a perplexity of 10^30, beyond which nobody asks for the difference
NUM_BINS: Final = 64
"""Bins of the scores of which a curve is made."""


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Correct examples, and all `[2]`."""
    return _doubles([(outputs.argmax(1) == targets).sum(), len(targets)])


def hits_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Correct labels of 0 and 1, and all `[2]`."""
    return _doubles([((outputs > 0) == (targets > 0)).sum(), targets.numel()])


def hits_of_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """Correct tokens of those that count, and all of them `[2]`."""
    counts = targets != IGNORED
    return _doubles([((outputs.argmax(-1) == targets) & counts).sum(), counts.sum()])


def value_of_hits(sums: Tensor) -> float:
    """Share of correct ones."""
    right, number = sums.tolist()
    return right / number if number else math.nan


def confusion(outputs: Tensor, targets: Tensor) -> Tensor:
    """Correct examples of each class, those predicted, and those there are `[3 K]`."""
    num_classes, predicted = outputs.shape[1], outputs.argmax(1)
    parts = (targets[predicted == targets], predicted, targets)
    return torch.cat([each.cpu().bincount(minlength=num_classes) for each in parts]).double()


def confusion_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Examples that have a label and were predicted to, those predicted, those that have it, by label `[3 K]`."""
    predicted, true = outputs > 0, targets > 0
    return torch.cat([each.sum(0) for each in (predicted & true, predicted, true)]).double().cpu()


def value_of_f1(sums: Tensor) -> float:
    """Mean of 2 tp / (predicted + true) over the classes that are predicted or true of any example (macro F1)."""
    right, predicted, true = sums.reshape(3, -1)
    there = predicted + true > 0
    return float((2 * right[there] / (predicted + true)[there]).mean()) if bool(there.any()) else math.nan


def value_of_recall(sums: Tensor) -> float:
    """Mean of tp / true over the classes that there are (balanced accuracy)."""
    right, _, true = sums.reshape(3, -1)
    there = true > 0
    return float((right[there] / true[there]).mean()) if bool(there.any()) else math.nan


def fault_of_confusion(sums: Tensor) -> str | None:
    """Return what cannot be of such counts, or None."""
    right, predicted, true = sums.reshape(3, -1)
    return (
        "more correct examples of a class than it has" if bool((right > torch.minimum(predicted, true)).any()) else None
    )


def fault_of_class_confusion(sums: Tensor) -> str | None:
    """Return what cannot be of such counts where each example has one class, or None."""
    _, predicted, true = sums.reshape(3, -1)
    if predicted.sum() != true.sum():
        return "other numbers of examples predicted than there are"
    return fault_of_confusion(sums)


def fault_of_class_bins(sums: Tensor) -> str | None:
    """Return what cannot be of counts by bins where each example has one class, or None."""
    true, other = sums.reshape(2, -1, NUM_BINS).sum(2)
    return "other numbers of examples of one class than of all" if bool((true + other != true.sum()).any()) else None


def fault_of_hits(sums: Tensor) -> str | None:
    """Return what cannot be of such counts, or None."""
    return "more correct ones than there are" if sums[0] > sums[1] else None


def bins_of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Examples of each class, and those of others, whose odds of it are in each bin `[2 K B]`."""
    true = torch.nn.functional.one_hot(targets, outputs.shape[1]).bool()
    return _binned(odds_of_classes(outputs), true)


def bins_of_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Examples with a label and without it whose logit is in each bin, by label `[2 K B]`."""
    return _binned(outputs, targets > 0)


def odds_of_classes(outputs: Tensor) -> Tensor:
    """Log odds of each class against all others, by the softmax of logits `[n, K]`; K is 2 or more."""
    shares, first = outputs.log_softmax(1), outputs.argmax(1, keepdim=True)
    others = outputs.scatter(1, first, -math.inf).logsumexp(1, keepdim=True)  # 1 - p of a sure one is nothing but noise
    odds = shares - torch.log1p(-shares.exp().clamp(max=0.5))
    return odds.scatter(1, first, outputs.gather(1, first) - others)


def classes_seen(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log odds of each class, and which is true, both `[n, K]`."""
    return odds_of_classes(outputs), torch.nn.functional.one_hot(targets, outputs.shape[1])


def num_bins(num_outputs: int) -> int:
    """Return how many counts the bins of a curve's scores are: of each output's true ones, and of the others."""
    return 2 * num_outputs * NUM_BINS


def ranks(scores: Tensor) -> Tensor:
    """Place of each score `[n, K]` among those of its class, int64, equal ones in one: the bins that lose nothing."""
    ordered, order = scores.sort(0)
    steps = torch.zeros_like(order)
    steps[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter(0, order, steps.cumsum(0))


def value_of_auroc(sums: Tensor, num_bins: int = NUM_BINS) -> float:
    """Mean over classes of the area under the ROC curve, ties as halves; classes with no other examples are left out.

    Hanley and McNeil 1982: the share of pairs of a true and another example in which the true one has the higher score.
    """
    true, other = sums.reshape(2, -1, num_bins)
    pairs = true.sum(1) * other.sum(1)
    won = (true * (other.cumsum(1) - other / 2)).sum(1)
    there = pairs > 0
    return float((won[there] / pairs[there]).mean()) if bool(there.any()) else math.nan


def error_of_auroc(sums: Tensor) -> float:
    """By how much the area of the scores themselves may differ: half of the pairs that are in one bin."""
    true, other = sums.reshape(2, -1, NUM_BINS)
    pairs = true.sum(1) * other.sum(1)
    there = pairs > 0
    return float(((true * other).sum(1)[there] / (2 * pairs[there])).mean()) if bool(there.any()) else math.nan


def value_of_average_precision(sums: Tensor, num_bins: int = NUM_BINS) -> float:
    """Mean over classes of the precision at each threshold, weighted by the recall that it adds."""
    true, found, all_found, there = _descending(sums, num_bins)
    if not bool(there.any()):
        return math.nan
    precision = found / all_found.clamp(min=1)
    return float(((true * precision).sum(1) / true.sum(1).clamp(min=1))[there].mean())


def error_of_average_precision(sums: Tensor) -> float:
    """By how much it may differ for the scores themselves, whatever the order inside of each bin."""
    true, found, all_found, there = _descending(sums)
    if not bool(there.any()):
        return math.nan
    before, others = found - true, all_found - found
    others_before = torch.cat([torch.zeros_like(others[:, :1]), others[:, :-1]], 1)
    best = found / (found + others_before).clamp(min=1)
    worst = (before + 1) / (before + 1 + others).clamp(min=1)
    spread = torch.maximum(best - found / all_found.clamp(min=1), found / all_found.clamp(min=1) - worst)
    return float(((true * spread.clamp(min=0)).sum(1) / true.sum(1).clamp(min=1))[there].mean())


def exact_auroc(scores: Tensor, true: Tensor) -> float:
    """Area under the ROC curve of scores `[n, K]` with what is true of each `[n, K]`, as `value_of_auroc`."""
    areas = []
    for own, labels in zip(scores.T, true.T.bool(), strict=True):
        positive, negative = own[labels], own[~labels]
        if len(positive) and len(negative):
            ordered = negative.sort().values
            below = torch.searchsorted(ordered, positive, right=False) + torch.searchsorted(
                ordered, positive, right=True
            )
            areas.append(float(below.double().sum()) / (2 * len(positive) * len(negative)))
    return math.fsum(areas) / len(areas) if areas else math.nan


def exact_average_precision(scores: Tensor, true: Tensor) -> float:
    """Average precision of scores `[n, K]`, as `value_of_average_precision`; equal scores make one threshold."""
    found = []
    for own, labels in zip(scores.T, true.T.double(), strict=True):
        if not bool(labels.any()):
            continue
        order = own.argsort(descending=True)
        values, right = own[order], labels[order].cumsum(0)
        last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool, device=values.device)])
        recalled = torch.diff(right[last], prepend=right.new_zeros(1))
        precision = right[last] / (last.nonzero().flatten() + 1)
        found.append(float((recalled * precision).sum() / right[-1]))
    return math.fsum(found) / len(found) if found else math.nan


def absolute_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sums of absolute errors of each value, and the number of examples `[K + 1]`."""
    return _with_number((outputs - targets).abs().sum(0), targets)


def value_of_errors(sums: Tensor) -> Tensor:
    """The mean of each value `[K]`."""
    return sums[:-1] / sums[-1]


def squared_errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sums of squared errors of each value, and the number of examples `[K + 1]`."""
    return _with_number((outputs - targets).square().sum(0), targets)


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sums of squared errors, of targets and of their squares of each value, and the number `[3 K + 1]`."""
    double = targets.double()
    parts = [(outputs - double).square().sum(0), double.sum(0), double.square().sum(0)]
    return _with_number(torch.cat(parts), targets)


def value_of_r2(sums: Tensor) -> float:
    """Mean over values of 1 - squared errors / squared deviations; values that do not vary are left out."""
    number = sums[-1]
    errors, totals, squared = sums[:-1].reshape(3, -1)
    varied = squared - totals.square() / number
    there = (varied > 1e-12 * squared) & (number > 1)
    return float((1 - errors[there] / varied[there]).mean()) if bool(there.any()) else math.nan


def fault_of_squares(sums: Tensor) -> str | None:
    """Return what cannot be of such sums, or None."""
    errors, totals, squared = sums[:-1].reshape(3, -1)
    if bool((errors < 0).any() | (squared < 0).any()):
        return "sums of squares below 0"
    if fault := _fault_of_number(sums):
        return fault
    return (
        "a sum larger than its squares allow"
        if bool((totals.square() > sums[-1] * squared * (1 + 1e-9) + 1e-9).any())
        else None
    )


def fault_of_errors(sums: Tensor) -> str | None:
    """Return what cannot be of such sums, or None."""
    return "sums of errors below 0" if bool((sums < 0).any()) else _fault_of_number(sums)


def _fault_of_number(sums: Tensor) -> str | None:
    """Return what cannot be of a number of examples, which comes last, or None."""
    number = float(sums[-1])
    if number < 0 or number != math.floor(number):
        return f"{number:g} examples"
    return "sums of no examples" if not number and bool(sums.any()) else None


def surprise(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of the tokens that count, in nats, and their number `[2]`."""
    counts = targets != IGNORED
    total = torch.nn.functional.cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return _doubles([total, counts.sum()])


def value_of_perplexity(sums: Tensor) -> float:
    """The exponential of the mean cross-entropy."""
    total, number = sums.tolist()
    return math.exp(min(total / number, _MOST_NATS)) if number else math.nan


def _binned(scores: Tensor, true: Tensor) -> Tensor:
    """Count log odds `[n, K]` by bins, equal in the sigmoid of half of them, of what is true and of what is not."""
    places = (torch.sigmoid(scores / 2) * NUM_BINS).long().clamp(0, NUM_BINS - 1).cpu()
    places, true = places + NUM_BINS * torch.arange(places.shape[1]), true.cpu()
    length = NUM_BINS * true.shape[1]
    return torch.cat([places[each].bincount(minlength=length) for each in (true, ~true)]).double()


def _descending(sums: Tensor, num_bins: int = NUM_BINS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By bin from the highest: true ones, true ones so far, all so far; and which classes have any true one."""
    true, other = sums.reshape(2, -1, num_bins).flip(2)
    found = true.cumsum(1)
    return true, found, found + other.cumsum(1), true.sum(1) > 0


def _with_number(sums: Tensor, targets: Tensor) -> Tensor:
    return torch.cat([sums.double().cpu(), torch.tensor([float(len(targets))], dtype=torch.float64)])


def _doubles(values: list[object]) -> Tensor:
    return torch.tensor([float(each) for each in values], dtype=torch.float64)  # type: ignore[arg-type]
