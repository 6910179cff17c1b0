"""Graphs of a network for other runtimes: a `torch.export` program, ONNX in float32, and ONNX in 8 bits.

Each is checked against the network before anybody gets it. What PyTorch and its exporters would put into the files
beside the graph is left out: example inputs are zeros, every tensor is stored alone rather than with the memory that it
is a view of, and no path of the machine is named.
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from spatl.errors import ConfigError, ModelError, told
from spatl.models.copies import duplicate

INPUT: Final = "images"
"""Name of the input in ONNX, float32 [N, C, H, W]."""
OUTPUT: Final = "logits"
"""Name of the output in ONNX, float32 [N, K]."""
LARGEST_TORCH_ERROR: Final = 1e-5
"""How far logits of a `torch.export` program may be from the network's, as a share of the largest logit."""
LARGEST_ONNX_ERROR: Final = 1e-4
"""Likewise for ONNX in float32."""

_BATCH = "batch"
_LARGEST_ONNX_FILE = 2**31 - 1  # bytes that one message of protobuf may have
_CALIBRATION_BATCH = 32
_NOISY_LOGGERS = ("", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._functorch", "torch.fx")


class WithOffset(nn.Module):
    """Network that adds a constant to its logits: a client's label offset (`spatl.training.calibration`).

    Args:
        network: float32 [N, C, H, W] to [N, K].
        offset: float32 [K].
    """

    offset: Tensor

    def __init__(self, network: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", offset.detach().clone())
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits with the offset added."""
        logits: Tensor = self.network(images)
        return logits + self.offset


def check_packages() -> None:
    """Raise unless what writes and runs ONNX files is installed.

    Raises:
        ConfigError: A package is missing.
    """
    try:
        import onnx  # noqa: F401  # of the extra; most who use this package never export
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"exporting a model needs onnx, onnxscript and onnxruntime ({one_word(error)} is missing): "
            "pip install 'spatl[export]'"
        ) from error


def one_word(error: ImportError) -> str:
    """Return the name of the package that could not be imported."""
    return (error.name or str(error)).partition(".")[0]


def exported_program(network: nn.Module, input_shape: tuple[int, int, int]) -> ExportedProgram:
    """Return a network as a `torch.export` program for batches of any size.

    Args:
        network: In eval mode, on the CPU; it is not changed.
        input_shape: C, H and W of its images.

    Returns:
        The program; its example input is zeros, and each of its tensors has memory of its own.

    Raises:
        ModelError: The network cannot be exported, or the program computes something else.
    """
    alone = duplicate(network).eval()
    example = torch.zeros(2, *input_shape)
    with _quiet():
        try:
            batch = torch.export.Dim(_BATCH, min=1)
            program = torch.export.export(alone, (example,), dynamic_shapes=({0: batch},), strict=False)
        except Exception as error:
            raise ModelError(f"torch.export cannot export the network: {told(error)}") from error
    for tensors in (program.state_dict, program.constants):
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                tensors[name] = _with_memory_of_its_own(value)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    exported = program.module()
    check_equal(
        "the torch.export program", network, lambda images: exported(torch.from_numpy(images)).detach().float().numpy(),
        input_shape, at_most=LARGEST_TORCH_ERROR,
    )  # fmt: skip
    return program


def onnx_of(program: ExportedProgram, network: nn.Module, input_shape: tuple[int, int, int]) -> bytes:
    """Return an ONNX model in float32, for batches of any size and with all its weights, checked against the network.

    Args:
        program: What `exported_program` returned.
        network: The network behind it.
        input_shape: C, H and W of its images.

    Raises:
        ConfigError: A package of the extra `export` is missing.
        ModelError: The network has something that ONNX has not, or the model computes something else.
    """
    check_packages()
    import onnx

    with _quiet():
        try:
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT], optimize=True
            )
            assert exported is not None
            model = exported.model_proto
        except Exception as error:
            raise ModelError(f"the network cannot be written as ONNX: {told(error)}") from error
        _tidy_(model)
        if (size := model.ByteSize()) > _LARGEST_ONNX_FILE:
            raise ModelError(f"an ONNX file holds at most {_LARGEST_ONNX_FILE} bytes, and this network needs {size}")
    data: bytes = model.SerializeToString()
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnx_session(data)
        check_equal(
            "the ONNX model", network, lambda images: run_session(session, images), input_shape,
            at_most=LARGEST_ONNX_ERROR,
        )  # fmt: skip
    except ModelError:
        raise
    except Exception as error:  # the packages raise classes of their own
        raise ModelError(
            f"ONNX Runtime cannot run the network, whose parameters are {_dtypes(network)}: {told(error)}"
        ) from error
    return data


def quantised(model: bytes, images: NDArray[np.float32]) -> bytes:
    """Return an ONNX model whose convolutions and linear layers compute in 8 bits.

    Static quantisation in the form of QDQ: unsigned activations with a range each, from the smallest to the largest
    value on the calibration images, and signed weights with a scale for each output channel, symmetric around 0. Signed
    or symmetric activations were slower on x86, on ResNet-20 by a factor of 3. Weights have 7 bits: an x86 without VNNI
    adds two products of an unsigned and a signed number of 8 bits in 16, where they do not fit, and cuts them off.

    Args:
        model: In float32, of `onnx_of`.
        images: float32 [N, C, H, W], what the network would get: normalised training images.

    Raises:
        ConfigError: A package of the extra `export` is missing.
        ModelError: There is no image to calibrate on, or ONNX Runtime cannot quantise the model.
    """
    check_packages()
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not len(images):
        raise ModelError("8-bit quantisation needs images to calibrate on, got none")
    with tempfile.TemporaryDirectory(prefix="spatl-int8-") as name, _quiet():
        given, prepared, written = (Path(name) / f"{each}.onnx" for each in ("float32", "prepared", "int8"))
        given.write_bytes(model)  # ONNX Runtime 1.32 loses the weights of a model that is given as an object
        try:
            quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(written),
                _reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # without it, two products overflow 16 bits where a CPU has no VNNI
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot quantise the network: {told(error)}") from error
        small = onnx.load(written)
    onnx.checker.check_model(small, full_check=True)
    data: bytes = small.SerializeToString()
    return data


def onnx_session(model: bytes | Path, *, threads: int = 1) -> Any:
    """Return a session of ONNX Runtime on the CPU (`onnxruntime.InferenceSession`)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits [N, K] of a session for images [N, C, H, W]."""
    return np.asarray(session.run([OUTPUT], {INPUT: images})[0], dtype=np.float32)


def check_equal(
    what: str, network: nn.Module, other: Any, input_shape: tuple[int, int, int], *, at_most: float
) -> None:
    """Raise unless something computes the same logits as a network, on noise in batches of one and of three.

    Args:
        what: What the other is called in the message.
        network: The reference, in eval mode.
        other: Called with float32 [N, C, H, W]; returns logits, float [N, K].
        input_shape: C, H and W.
        at_most: The largest difference, as a share of the largest logit in size.

    Raises:
        ModelError: It computes something else.
    """
    noise = np.random.default_rng(0)
    for batch in (1, 3):
        images = noise.standard_normal((batch, *input_shape)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).float().numpy()
        found = np.asarray(other(images), dtype=np.float32)
        if found.shape != expected.shape:
            raise ModelError(f"{what} returns {list(found.shape)} where the network returns {list(expected.shape)}")
        error = relative_error(found, expected)
        if not error <= at_most:
            raise ModelError(
                f"{what} differs from the network by {error:.1e} of the largest logit, at most {at_most:.0e} is "
                "allowed; nothing was written"
            )


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference of logits as a share of the largest expected one in size; NaN if one is NaN."""
    largest = float(np.abs(expected).max())
    return float(np.abs(found.astype(np.float64) - expected).max()) / (largest or 1.0)


def _dtypes(network: nn.Module) -> str:
    found = sorted({str(each.dtype).removeprefix("torch.") for each in network.parameters()})
    return " and ".join(found) or "none"


def _with_memory_of_its_own(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy


def _tidy_(model: Any) -> None:
    """Name the batch, and drop what the exporter noted of the source, paths included; in place."""
    names = {
        dimension.dim_param: _BATCH
        for value in model.graph.input
        for dimension in value.type.tensor_type.shape.dim[:1]
        if dimension.dim_param
    }
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for value in values:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    noted = (model, model.graph, *values, *model.graph.node, *model.graph.initializer, *model.functions)
    for each in noted:
        del each.metadata_props[:]
        each.ClearField("doc_string")


def _reader(images: NDArray[np.float32]) -> Any:
    """Return calibration images as ONNX Runtime asks for them, some at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            starts = range(0, len(images), _CALIBRATION_BATCH)
            self._batches: Iterator[NDArray[np.float32]] = (images[at : at + _CALIBRATION_BATCH] for at in starts)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say about themselves from the terminal; their errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(onnx|onnxscript|torch|copyreg)\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
