"""One set of channels for all clients, agreed on before the first round, as in SSFL (Ohib et al. 2024).

Every client measures how much its loss depends on each channel of the initial encoder; the server averages these
saliencies, keeps the most salient channels that the budget pays for, and all clients train and send only those; the
rest is zero for good. Departure: the paper keeps single weights, here whole channels stay or go, so that the mask
costs one bit a channel and what is left is a smaller dense network.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spatl.channels.costs import Budget, BudgetKind, Costs, check_floor
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.channels.vectors import parts_of
from spatl.data import Examples
from spatl.selection.projection import group_leaders, longest_prefix, rank_by_worth
from spatl.tasks.task import CLASSIFICATION, Task
from spatl.training.evaluate import forward_with_batch_statistics

_MAX_EXAMPLES = 256  # as many as the measurement needs, in one batch
_MOST_TIMES = 5.0  # the lower median of the clients' sums, which one client's saliencies may add up to


def channel_saliency(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], layout: EncoderLayout, examples: Examples, *,
    task: Task = CLASSIFICATION,
) -> Tensor:  # fmt: skip
    """Measure the connection sensitivity of each channel of a network as it stands (paper, section 3).

    Args:
        model: The network, on the device of the examples; it stays as it was.
        parameters: Its shared parameters by name.
        layout: The encoder.
        examples: The client's training split, of which the first 256 are used.
        task: What their targets are for.

    Returns:
        float32 [C] on the CPU: the sum over a channel's parameters of |gradient x weight|, the gradient being that of
        the mean loss over the examples, BatchNorm using the statistics of the batch.
    """
    logits = forward_with_batch_statistics(model, examples.inputs[:_MAX_EXAMPLES], parameters, gradients=True)
    loss = task.loss.mean(logits, examples.targets[:_MAX_EXAMPLES])
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    sensitivity = {
        name: torch.zeros_like(p) if gradient is None else (gradient * p).abs()
        for (name, p), gradient in zip(parameters.items(), gradients, strict=True)
    }
    values = torch.cat([value.detach().reshape(-1).cpu() for value in sensitivity.values()])
    saliency = torch.zeros(layout.num_channels, dtype=torch.float64)
    for part in parts_of(layout.num_parameter_entries):
        saliency.index_add_(0, layout.owner_in(part), values[part].double())
    return saliency.to(torch.float32)


def common_selection(
    saliency: Mapping[int, Tensor], num_examples: Mapping[int, int], costs: Costs, budget: Budget
) -> Selection:
    """Return the channels that all clients train.

    Args:
        saliency: float32 [C] by client; one that adds up to more than five times the lower median of these sums is
            scaled down to that, for a client may say what it likes.
        num_examples: n_i by client, the weights of their average.
        costs: The encoder.
        budget: What one update may cost.

    Returns:
        The channels with the largest average saliency per cost that the budget pays for, closed; the best channel of
        every group and whatever no layer reads (the logits of a shared predictor) always stay.

    Raises:
        BudgetError: The budget does not pay for what always stays.
    """
    total = torch.zeros(costs.layout.num_channels, dtype=torch.float64)
    sums = {client: float(own.double().sum()) for client, own in saliency.items()}
    most = _MOST_TIMES * sorted(sums.values())[(len(sums) - 1) // 2]
    for client in sorted(saliency):  # in a fixed order, so that the order of replies changes nothing
        scale = min(1.0, most / sums[client]) if sums[client] > 0 else 1.0
        total += saliency[client].double() * (scale * num_examples[client])
    ranking = rank_by_worth(total, costs, budget.kind)
    stays = _always(ranking, costs)
    check_static_budget(budget, costs, ranking)
    rest = ranking[~stays[ranking]]
    length = longest_prefix(
        lambda length: _cost(_with(stays, rest[:length]), costs, budget.kind), budget.limit, low=0, high=len(rest)
    )
    return Selection(_with(stays, rest[:length]), closed=True)


def check_static_budget(budget: Budget, costs: Costs, ranking: Tensor | None = None) -> None:
    """Raise unless the budget pays for one channel of every group and for whatever no layer reads.

    Args:
        budget: What one update may cost.
        costs: The encoder.
        ranking: int64 [C], channels from best to worst; which is best changes no cost.

    Raises:
        BudgetError: It does not.
    """
    if ranking is None:
        ranking = torch.arange(costs.layout.num_channels)
    stays = _always(ranking, costs)
    what = f"the {int(stays.sum())} channels that a static mask always keeps already cost"
    check_floor(budget, _cost(stays, costs, budget.kind), what)


def _always(ranking: Tensor, costs: Costs) -> Tensor:
    """Bool [C]: the best channel of every group, and the channels that no layer reads."""
    stays = torch.ones(costs.layout.num_channels, dtype=torch.bool)
    for channels in costs.trace.readers.values():
        stays[channels[channels >= 0]] = False
    stays[ranking[group_leaders(ranking, costs.layout)]] = True
    return stays


def _with(mask: Tensor, channels: Tensor) -> Tensor:
    more = mask.clone()
    more[channels] = True
    return more


def _cost(mask: Tensor, costs: Costs, kind: BudgetKind) -> float:
    """The cost of a closed selection, in the unit of the budget's kind."""
    layout, selection = costs.layout, Selection(mask, closed=True)
    if kind == "flops_ratio":
        return costs.flops.ratio(selection.counts(layout))
    if kind == "keep_ratio":
        return selection.keep_ratio(layout)
    return float(costs.update_bytes(selection.num_entries(layout), int(mask.sum())))
