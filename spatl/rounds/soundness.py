"""Soundness of a network as it was built: finite weights, and the outputs that its task asks for."""

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spatl.data import Dataset
from spatl.errors import ModelError, told
from spatl.models.inputs import take_inputs_
from spatl.tasks.targets import TASKS
from spatl.tensors.inputs import shapes_of


def check_weights(model: nn.Module) -> None:
    """Raise where a weight is no number before anything was trained: later the learning rate would be blamed.

    Raises:
        ModelError: There is one; the message names the parameter.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):  # what `make_split` refuses, by name
            continue
        wrong = int((~parameter.detach().isfinite()).sum())
        if wrong:
            raise ModelError(
                f"the model's initial weights must be finite, got {wrong} of {parameter.numel()} in {name!r} that are "
                "NaN or infinity; look at how the model is made"
            )


def check_output(model: nn.Module, dataset: Dataset) -> None:
    """Raise unless the model gives what its task asks for, as one logit per class, here rather than inside a client.

    Raises:
        ModelError: It fails, or gives something else.
    """
    try:
        logits = take_inputs_(model, dataset.inputs[:1])
    except ModelError:
        raise
    except Exception as error:
        failure = f"the model fails on {shapes_of(dataset.inputs[:1])}: {told(error)}"
        shape = dataset.image_shape
        if shape is not None and shape[1] != shape[2]:
            failure = (
                f"images are {shape[1]} x {shape[2]}; this model needs squares: set data.options.image_size ({failure})"
            )
        raise ModelError(failure) from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    row = TASKS[dataset.task]
    expected = row.output_shape(dataset.targets[:1], dataset.num_classes)
    if found != expected:
        raise ModelError(f"for one example the model must return {row.outputs} of shape {expected}, got {found}")
    if not logits.is_floating_point() or bool(logits.isnan().any()):
        what = "NaN" if logits.is_floating_point() else f"{logits.dtype}, which no loss can be computed of,"
        raise ModelError(f"the model returns {what} for the first example, before any training")
