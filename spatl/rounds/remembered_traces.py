"""Traces of this project's own networks, made once per process: the rows and methods of a benchmark share theirs.

A trace is a function of the network, of its initial weights and of an example's shape. Of this project's own networks
a row of `MODELS` and its options say all that is no tensor; a user's code may change under its name (a notebook's
does), and such a network is traced each time.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Final

from torch import Tensor, nn

from spatl.channels.trace import EncoderTrace
from spatl.channels.tracing import trace_groups
from spatl.config.experiment import ExperimentConfig
from spatl.models import MODELS
from spatl.models.copies import digest_of
from spatl.tensors.inputs import Inputs

_MOST_TRACES: Final = 8
_MOST_ENTRIES: Final = 1 << 20  # the trace of a larger network takes memory that clients need

_traces: OrderedDict[Hashable, EncoderTrace] = OrderedDict()


def traced(
    config: ExperimentConfig, model: nn.Module, example: Inputs, *, parameters: Sequence[str], statistics: Sequence[str]
) -> EncoderTrace:
    """Return the trace of a config's network, as of `trace_groups`, which remembers none.

    Args:
        config: What the network was built from.
        model: The network, with what the config adds to it.
        example: [B, ...], an input to trace with.
        parameters: As of `trace_groups`.
        statistics: Likewise.

    Raises:
        ModelError: The model fails on the example.
    """
    key = _key(config, model, example, (*parameters, None, *statistics))
    if key in _traces:
        _traces.move_to_end(key)
        return _traces[key]
    trace = trace_groups(model, example, parameters=parameters, statistics=statistics)
    if key is not None and not trace.doubtful:  # which is warned of each time
        _traces[key] = trace
        if len(_traces) > _MOST_TRACES:
            _traces.popitem(last=False)
    return trace


def _key(config: ExperimentConfig, model: nn.Module, example: Inputs, names: tuple[str | None, ...]) -> Hashable | None:
    """Return all that a trace follows from; None where something else may change it, or it would be large."""
    if config.model.name not in MODELS or not isinstance(example, Tensor) or not example.is_floating_point():
        return None
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if sum(each.numel() for each in tensors.values()) > _MOST_ENTRIES:
        return None
    factory, residual = MODELS[config.model.name].factory, config.predictor_row.residual
    built = config.model.model_dump_json(include={"options", "cut"})
    return factory, built, residual, digest_of(tensors), example.shape, example.dtype, names
