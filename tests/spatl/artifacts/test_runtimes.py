"""What latencies are measured in: ONNX Runtime, where it is installed, on what an export would write."""

import sys
from typing import Any

import pytest
import torch

from spatl.artifacts import runtimes
from spatl.artifacts.runtimes import EAGER, FLOAT32, Latency, latency_meter, measure_onnx_latency
from spatl.training.calibration import calibrated
from tests.support import exports

SHAPE = (3, 16, 16)


def test_latencies_are_those_of_onnx_runtime_where_it_is_installed() -> None:
    told: list[str] = []
    meter = latency_meter(told.append)
    assert (meter.runtime, meter.measure) == (FLOAT32, measure_onnx_latency)
    assert told == ["latencies are those of ONNX Runtime, float32"]


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_it_they_are_those_of_pytorch_and_a_line_says_so(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    told: list[str] = []
    meter = latency_meter(told.append)
    assert meter.runtime == EAGER
    assert meter.measure(exports.network(), torch.zeros(1, *SHAPE)) > 0
    (line,) = told
    assert line.startswith("latencies are those of PyTorch, eager, not of ONNX Runtime: ")
    assert f"({name} is missing)" in line


@pytest.mark.slow
def test_what_is_timed_is_the_onnx_model_with_what_is_added_to_its_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are the network's, an offset included."""
    network, offset = exports.network(), torch.arange(3.0)
    found: list[tuple[Any, Any]] = []
    truly = runtimes.run_session

    def run(session: Any, images: Any) -> Any:
        found.append((images, truly(session, images)))
        return found[-1][1]

    monkeypatch.setattr(runtimes, "run_session", run)
    with calibrated(network, offset):
        assert measure_onnx_latency(network, torch.zeros(4, *SHAPE), seconds=0.0) > 0
    assert found
    for images, logits in found:
        assert images.shape == (4, *SHAPE)
        with torch.no_grad():
            expected = network(torch.from_numpy(images)) + offset
        assert (torch.from_numpy(logits) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.slow
def test_a_budget_and_the_card_measure_by_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns with the network in eager PyTorch, whose times are not what is returned."""

    def measured(forms: Any, input_shape: Any, *, batches: Any, seconds: float) -> list[Latency]:
        assert (input_shape, batches) == (SHAPE, (2,))
        return [Latency("", EAGER, 2, 9.0), Latency("", FLOAT32, 2, 4.0)]

    monkeypatch.setattr(runtimes, "measure_forms", measured)
    assert measure_onnx_latency(exports.network(), torch.zeros(2, *SHAPE)) == 4.0
