"""BatchNorm statistics of a whole federation: each client's, put together after the last round.

A client estimates the means m_i and variances v_i of its layers' inputs on its own training split, under the encoder
that all share by then (`spatl.training.evaluate.recalibrate_`). With p_i its share of the examples, those of all data
together are

    m = sum_i p_i m_i        v = sum_i p_i (v_i + (m_i - m)^2)

the mean of the variances plus the variance of the means, exactly. Under an aggregation rule that does not trust every
client (`server.aggregation` other than `mean`) the sums become medians over the clients, channel by channel.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from spatl.models import Split
from spatl.wire.statistics import Statistics

FARTHEST: Final = 10.0
"""How far a client's statistics may be from the others': in standard deviations of a channel's input, and in the
logarithm of its variance, as the root mean square over all channels. An honest client is within a few of either; one
whose variances are wrong by a factor of e^10 on every channel is not one that sees the same things."""
_EPSILON: Final = 1e-5  # BatchNorm's own: variances below it are the same to the network
_FEWEST: Final = 3  # clients among whom there is a majority


def statistics_names(model: nn.Module, split: Split) -> dict[str, tuple[str, str]]:
    """Return the names of the running mean and variance of each layer of the encoder that keeps moving ones.

    Args:
        model: The network.
        split: Its cut.

    Returns:
        By layer name, in the model's order.
    """
    names = list(split.encoder_statistics(model))
    layers = [name.removesuffix("running_mean") for name in names if name.endswith("running_mean")]
    return {layer.removesuffix("."): (f"{layer}running_mean", f"{layer}running_var") for layer in layers}


def gathered(model: nn.Module, names: Mapping[str, tuple[str, str]]) -> Statistics:
    """Return the statistics that a model holds, on the CPU."""
    buffers, none = dict(model.named_buffers()), torch.zeros(0)
    means, variances = (
        torch.cat(
            [none, *(buffers[pair[place]].detach().reshape(-1).to("cpu", torch.float32) for pair in names.values())]
        )
        for place in (0, 1)
    )
    return Statistics(means, variances)


def named_statistics(
    statistics: Statistics, model: nn.Module, names: Mapping[str, tuple[str, str]]
) -> dict[str, Tensor]:
    """Return statistics by the names of a model's buffers, in their shapes and dtypes."""
    buffers, found, start = dict(model.named_buffers()), {}, 0
    for pair in names.values():
        for name, values in zip(pair, (statistics.means, statistics.variances), strict=True):
            own = buffers[name]
            found[name] = values[start : start + own.numel()].reshape(own.shape).to(own.dtype)
        start += buffers[pair[0]].numel()
    return found


def load_statistics_(model: nn.Module, statistics: Statistics, names: Mapping[str, tuple[str, str]]) -> None:
    """Copy statistics into a model, in place."""
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, values in named_statistics(statistics, model, names).items():
            buffers[name].copy_(values)


def aggregate_statistics(
    answers: Mapping[int, Statistics], num_examples: Mapping[int, int], *, medians: bool = False
) -> Statistics:
    """Put the statistics of clients together; in any order of them the same.

    Args:
        answers: By client; at least one.
        num_examples: The training examples of each of them at least (n_i).
        medians: Whether to take medians over the clients, each of whom counts alike, in place of weighted sums.
    """
    clients = sorted(answers)
    means = torch.stack([answers[client].means.double() for client in clients])
    variances = torch.stack([answers[client].variances.double() for client in clients])
    if medians:
        mean = means.quantile(0.5, dim=0)
        variance = (variances + (means - mean).square()).quantile(0.5, dim=0)
    else:
        weights = torch.tensor([num_examples[client] for client in clients], dtype=torch.float64)
        weights /= weights.sum()
        mean = weights @ means
        variance = weights @ (variances + (means - mean).square())
    return Statistics(mean.float(), variance.float())


def without_outliers(answers: Mapping[int, Statistics]) -> tuple[dict[int, Statistics], dict[int, str]]:
    """Return the answers that may be used, and why each other one may not.

    Args:
        answers: By client.

    Returns:
        All of them where they are fewer than three, or of a model without statistics; otherwise those within `FARTHEST`
        of the medians.
    """
    if len(answers) < _FEWEST or not any(each.means.numel() for each in answers.values()):
        return dict(answers), {}
    means = torch.stack([each.means.double() for each in answers.values()]).quantile(0.5, dim=0)
    variances = torch.stack([each.variances.double() for each in answers.values()]).quantile(0.5, dim=0)
    fitting, refused = dict[int, Statistics](), dict[int, str]()
    for client, each in answers.items():
        reason = outlying_by(each.means.double(), each.variances.double(), means, variances)
        if reason is None:
            fitting[client] = each
        else:
            refused[client] = reason
    return fitting, refused


def outlying_by(means: Tensor, variances: Tensor, others_means: Tensor, others_variances: Tensor) -> str | None:
    """Return why statistics are too far from the others' to be used; None where they are not.

    Args:
        means: float64 [M], a client's.
        variances: float64 [M], likewise, none below 0.
        others_means: float64 [M], what the others say.
        others_variances: float64 [M], likewise.
    """
    own, others = variances + _EPSILON, others_variances + _EPSILON
    shift = _rms((means - others_means) / (own + others).sqrt())
    stretch = _rms((own / others).log())
    if shift <= FARTHEST and stretch <= FARTHEST:
        return None
    return (
        f"its BatchNorm statistics are {shift:.3g} standard deviations and a factor of e^{stretch:.3g} in variance "
        f"from the other clients', of {FARTHEST:g} that are possible"
    )


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean())) if values.numel() else 0.0
