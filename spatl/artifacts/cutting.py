"""Cutting of a trained network: a physically smaller one that meets a budget, verified against the masked network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spatl.artifacts.refinement import Refined, check_epochs, evaluated, refined
from spatl.artifacts.runtimes import LatencyMeter, latency_meter
from spatl.artifacts.widths import CutAgent, CutBudget, WidthRequest, latency_limited
from spatl.channels.flops import measure_macs
from spatl.channels.masking import masked_weights
from spatl.channels.narrowing import WIDTH, CutData, cut_data, rebuild, widths_without_tensors
from spatl.channels.prunable import Prunable, find_prunable
from spatl.channels.selection import Selection
from spatl.data import Examples
from spatl.errors import ModelError, told
from spatl.models.copies import duplicate
from spatl.training.calibration import calibrated
from spatl.training.evaluate import Evaluation
from spatl.training.step_weight import TrainingSettings

LARGEST_DIFFERENCE: Final = 1e-5
"""Most that a cut network's logits may differ from those of the masked one, as a share of the largest logit."""
MEASUREMENTS: Final = 10
"""How many networks are measured at most to meet a latency."""

_MAX_EXAMPLES: Final = 256  # that the cut and the masked network are compared on


@dataclass(frozen=True, eq=False)
class CutNetwork:
    """Network that was cut.

    Attributes:
        network: The cut network, in eval mode.
        kept: By name of a channel group, the channels of it that stay, ascending.
        sizes: By name of a group, how many channels the dense network has.
        flops_ratio: Multiply-accumulates that are left, as a share of the dense network's.
        parameters_ratio: Parameters that are left, likewise.
        macs: Multiply-accumulates for one example, of the dense network and of the cut one.
        num_parameters: Parameters, likewise.
        doubtful: By name of a group that is kept whole because it could not be proved who reads its channels, or
            because its layers cannot be made narrower, why.
        cut: Plain data from which `spatl.channels.narrowing.rebuild` makes the cut architecture.
        difference: By how much the cut network's logits differed from the masked one's before anything was
            re-estimated or trained, at most, as a share of the largest logit.
        dense: Evaluation of the dense network on the validation split.
        refined: What re-estimation and fine-tuning did, and the evaluations after each epoch.
        dense_test, test: Evaluations on the test split, of the dense network and the cut one; None without one.
        latency_ms: Of the dense and the cut network, where the budget was a latency; None otherwise.
        latency_runtime: What they were measured in, likewise.
    """

    network: nn.Module
    kept: Mapping[str, list[int]]
    sizes: Mapping[str, int]
    flops_ratio: float
    parameters_ratio: float
    macs: tuple[int, int]
    num_parameters: tuple[int, int]
    doubtful: Mapping[str, str]
    cut: CutData
    difference: float
    dense: Evaluation
    refined: Refined
    dense_test: Evaluation | None = None
    test: Evaluation | None = None
    latency_ms: tuple[float, float] | None = None
    latency_runtime: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of channels of each group that stay, by name."""
        return {name: len(channels) for name, channels in self.kept.items()}

    @property
    def is_cut(self) -> bool:
        """True if any channel is gone."""
        return any(len(channels) < self.sizes[name] for name, channels in self.kept.items())


def cut_network(
    network: nn.Module, example: Tensor, *, budget: CutBudget, train: Examples, validation: Examples,
    test: Examples | None = None, selector: str = "signal", exact: bool = False,
    training: TrainingSettings | None = None, finetune_epochs: int = 0, offset: Tensor | None = None,
    batch_size: int = 64, seed: int = 0, agent: CutAgent | None = None,
    meter: LatencyMeter | None = None, progress: Callable[[str], None] | None = None,
) -> CutNetwork:  # fmt: skip
    """Cut a trained network to a budget, check it against the masked one, and re-estimate its BatchNorm statistics.

    Args:
        network: The dense network, images `[B, C, H, W]` to logits `[B, K]`; it stays as it was.
        example: float32 `[B, C, H, W]`, an input; only its shape matters. A latency is that of this batch.
        budget: What may be left.
        train: Examples to measure the channels' signal on, to re-estimate statistics and to fine-tune.
        validation: Examples to choose by.
        test: Examples that are reported on, and choose nothing.
        selector: `"signal"`, `"agent"`, `"magnitude"`, `"random"`, or `"package.module:name"`.
        exact: Keep any number of channels instead of multiples of eight.
        training: How to fine-tune; needed for `finetune_epochs`.
        finetune_epochs: Passes over `train` after the cut; the best epoch on `validation` is kept.
        offset: float32 [K], added to the logits in training and evaluation: a client's label offset. The network that
            is returned is without it, as the given one is.
        batch_size: Examples per batch of the re-estimation.
        seed: Of the selector's choices and the order of training.
        agent: Settings of the agent.
        meter: Measures latencies, for a budget of `latency_ms`; that of `latency_meter` if not given.
        progress: Told what is being done, one line at a time.

    Raises:
        BudgetError: The least that may be left costs more.
        ModelError: The network cannot be traced or cut, or the cut one computes something else than the masked one.
        ConfigError: The selector or the number of epochs is not allowed.
    """
    tell = progress or _silent
    check_epochs(finetune_epochs, training)
    dense = duplicate(network).eval()
    tell("finding the channels that may be cut")
    prunable = find_prunable(dense, example)
    tell(f"choosing channels by {selector} for {budget.kind} {budget.limit:g}")
    with calibrated(dense, offset):
        request = WidthRequest(dense, prunable, train, validation, selector, exact, seed, agent or CutAgent())
        selection, latencies = _selection(request, example, budget, meter, tell)
    difference, small, data = cut_to(dense, prunable, selection, _compared(train, validation))
    tell("re-estimating BatchNorm statistics" + (f", {finetune_epochs} epochs of training" if finetune_epochs else ""))
    result = refined(
        small, train, validation, was_cut=not bool(selection.mask.all()), training=training, epochs=finetune_epochs,
        offset=offset, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    dense_test, cut_test = (_evaluated(each, test, offset) for each in (dense, result.network))
    return CutNetwork(
        network=result.network, cut=data, difference=difference, dense=evaluated(dense, validation, offset),
        refined=result, dense_test=dense_test, test=cut_test, doubtful=prunable.doubtful, **latencies,
        **_facts(dense, small, example, prunable, selection),
    )  # fmt: skip


def cut_to(
    network: nn.Module, prunable: Prunable, selection: Selection, images: Tensor
) -> tuple[float, nn.Module, CutData]:
    """Cut a network to given channels, and check that it computes what the masked network does.

    Args:
        network: The dense network in eval mode; it stays as it was.
        prunable: What may be cut of it.
        selection: The channels that stay, with all that must (`Prunable.completed`).
        images: float32 [B, C, H, W], to compare on.

    Returns:
        The largest difference of a logit as a share of the largest logit, the cut network, and the data of the cut.

    Raises:
        ModelError: The cut network fails, or its logits differ by more than `LARGEST_DIFFERENCE`.
    """
    data = cut_data(network, prunable.trace, selection)
    small = rebuild(network, data)
    try:
        for name, width in widths_without_tensors(small, images[:1]).items():
            data["layers"][name] = {WIDTH: width}
            small = rebuild(network, data)
        with torch.no_grad():
            logits = small(images)
    except Exception as error:
        raise ModelError(
            f"the cut network fails, perhaps because its forward depends on a number of channels: {told(error)}; "
            "export the model as it is"
        ) from error
    with torch.no_grad():
        masked = functional_call(network, masked_weights(network, prunable.trace.readers, selection), (images,))
    if logits.shape != masked.shape:
        raise ModelError(
            f"the cut network returns {list(logits.shape)} where the masked one returns {list(masked.shape)}; export "
            "the model as it is"
        )
    difference = float((logits - masked).abs().max() / masked.abs().max().clamp(min=1e-30))
    if not difference <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"the cut network's logits differ from those of the masked one by {difference:.1e} of the largest logit, "
            f"where {LARGEST_DIFFERENCE:.0e} is allowed; export the model as it is"
        )
    return difference, small, data


def _selection(
    request: WidthRequest, example: Tensor, budget: CutBudget, meter: LatencyMeter | None, tell: Callable[[str], None]
) -> tuple[Selection, dict[str, Any]]:
    """Return the channels that stay, and of the latencies, if they were measured, what `CutNetwork` says."""
    if budget.kind != "latency_ms":
        return request.select(budget.kind, budget.limit), {}
    meter = meter or latency_meter(tell)
    measured: dict[Selection, float] = {}

    def latency(selection: Selection) -> float:
        small = rebuild(request.network, cut_data(request.network, request.prunable.trace, selection))
        measured[selection] = meter.measure(small, example)
        tell(f"network {len(measured)} of {MEASUREMENTS} at most takes {measured[selection]:.3g} ms")
        return measured[selection]

    best = latency_limited(
        lambda ratio: request.select("flops", ratio), latency, budget.limit, floor=request.floor("flops"),
        most=MEASUREMENTS,
    )  # fmt: skip
    found = next(iter(measured.values())), measured[best]
    return best, {"latency_ms": found, "latency_runtime": meter.runtime}


def _facts(
    dense: nn.Module, small: nn.Module, example: Tensor, prunable: Prunable, selection: Selection
) -> dict[str, Any]:
    layout = prunable.layout
    macs = [sum(measure_macs(each, example[:1]).values()) for each in (dense, small)]
    numbers = [sum(parameter.numel() for parameter in each.parameters()) for each in (dense, small)]
    groups = list(zip(prunable.names, layout.groups, strict=True))
    return {
        "kept": {
            name: selection.mask[group.first : group.first + group.size].nonzero().squeeze(1).tolist()
            for name, group in groups
        },
        "sizes": {name: group.size for name, group in groups},
        "macs": tuple(macs),
        "num_parameters": tuple(numbers),
        "flops_ratio": macs[1] / max(1, macs[0]),
        "parameters_ratio": numbers[1] / max(1, numbers[0]),
    }


def _compared(*splits: Examples) -> Tensor:
    return torch.cat([examples.images[: _MAX_EXAMPLES // len(splits)] for examples in splits])


def _evaluated(network: nn.Module, examples: Examples | None, offset: Tensor | None) -> Evaluation | None:
    return None if examples is None else evaluated(network, examples, offset)


def _silent(line: str) -> None:
    del line
