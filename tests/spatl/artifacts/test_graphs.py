"""Graphs for other runtimes compute what the masked network does, on seven networks, and say what they cannot."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.numpy_helper import to_array
from torch import Tensor, nn
from torch.func import functional_call

from spatl.artifacts.cutting import cut_to
from spatl.artifacts.graphs import (
    WithOffset,
    exported_program,
    onnx_of,
    onnx_session,
    quantised,
    relative_error,
    run_session,
)
from spatl.channels.masking import masked_weights
from spatl.errors import ModelError
from spatl.models.inputs import take_inputs_
from tests.support import exports, users_nets
from tests.support.cuts import NETWORKS, SIZE, chosen, dense, images

SHAPE = (1, SIZE, SIZE)
BETWEEN = "resnet32"  # more blocks than resnet20, fewer than resnet56, and none of its own


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != BETWEEN])
def test_graphs_of_a_cut_network_compute_what_the_masked_one_does(name: str) -> None:
    network, prunable = dense(name)
    selection = chosen(prunable, 1)
    _, small, _ = cut_to(network, prunable, selection, images())
    offset = torch.linspace(-1, 1, 10)
    with torch.no_grad():
        masked = functional_call(network, masked_weights(network, prunable.trace.readers, selection), (images(),))
    expected = (masked + offset).numpy()
    whole = WithOffset(small, offset).eval()
    program = exported_program(whole, SHAPE)
    assert relative_error(program.module()(images()).detach().numpy(), expected) <= 1e-5
    session = onnx_session(onnx_of(program, whole, SHAPE))
    assert relative_error(run_session(session, images().numpy()), expected) <= 1e-4


@pytest.mark.slow
def test_nothing_is_warned_of_on_the_way(recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither by Python's warnings nor by what PyTorch and ONNX write to the terminal."""
    network = exports.network()
    warnings.simplefilter("always")
    data = onnx_of(exported_program(network, (3, 16, 16)), network, (3, 16, 16))
    quantised(data, exports.normalised(exports.images(40)).numpy())
    assert [str(each.message) for each in recwarn] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_ranges_of_8_bit_numbers_come_from_all_calibration_images(seed: int) -> None:
    """The 40 images go through in batches of 32; the largest value, in the last one, must not be cut off.

    Nor may the sum of two products, which both are as large as they get, where a CPU adds them in 16 bits.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).eval()
    data = onnx_of(exported_program(network, (2, 1, 1)), network, (2, 1, 1))
    calibration = np.zeros((40, 2, 1, 1), dtype=np.float32)
    calibration[-1] = 10.0
    small = quantised(data, calibration)
    session = onnx_session(small)
    images = np.array([[10.0, 10.0], [0.0, 0.0]], dtype=np.float32).reshape(2, 2, 1, 1)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    assert relative_error(run_session(session, images), expected) <= 0.02
    weights = [
        to_array(each) for each in onnx.load_from_string(small).graph.initializer if each.data_type == TensorProto.INT8
    ]
    assert max(int(abs(each.astype(int)).max()) for each in weights) <= 64  # 2 * 255 * 64 < 2 ** 15, on any CPU
    with pytest.raises(ModelError, match="8-bit quantisation needs images to calibrate on, got none"):
        quantised(data, calibration[:0])


class Pinned(nn.Module):
    """A network for batches of two."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.view(2, 2))


def test_a_network_for_batches_of_one_size_is_refused() -> None:
    with pytest.raises(ModelError, match=r"torch\.export cannot export the network"):
        exported_program(Pinned().eval(), (2, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "the ONNX model differs from the network by .* of the largest logit"),
        ("bfloat16", "ONNX Runtime cannot run the network, whose parameters are bfloat16: "),
        ("float64", "ONNX Runtime cannot run the network, whose parameters are float64: "),
    ],
)
def test_a_network_of_another_dtype_is_refused_in_one_line(dtype: str, message: str) -> None:
    network = users_nets.of_dtype(dtype, num_classes=10, in_channels=1).eval()
    take_inputs_(network, images()[:1])
    program = exported_program(network, SHAPE)
    with pytest.raises(ModelError, match=message) as caught:
        onnx_of(program, network, SHAPE)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_network_stays_as_it_was() -> None:
    network = exports.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    program = exported_program(network, (3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for value in program.state_dict.values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
    assert not any(bool(each.any()) for each in program.example_inputs[0])


@pytest.mark.slow
def test_an_onnx_file_says_nothing_of_the_source() -> None:
    network = exports.network()
    model = onnx.load_model_from_string(onnx_of(exported_program(network, (3, 16, 16)), network, (3, 16, 16)))
    noted = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info]
    assert not any(each.metadata_props or each.doc_string for each in noted)
