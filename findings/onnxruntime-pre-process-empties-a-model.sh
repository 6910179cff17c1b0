#!/usr/bin/env bash
# onnxruntime 1.32.0: preparing a model that is given as an object for quantisation fails, and empties the caller's model.
#
# `quant_pre_process` takes a path or a `ModelProto`. With `skip_symbolic_shape=True`, which its own tool offers and which
# networks of convolutions do not need, a path works; the same model as an object raises, and afterwards the object that
# was handed in holds none of its weights: they were moved to a file in a temporary directory that is gone. The first step
# saves the object with `save_as_external_data=True`, which changes it in place, and the next ones go on with the object.
# Whoever catches the error and goes on with the model in float32 has a model that cannot be run, nor saved again.
# Without the switch the object works, and stays whole. Write the model to a file first, and give its path.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 sympy==1.14.0 2>/dev/null
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import logging
import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

logging.disable(logging.CRITICAL)  # it logs a traceback of its own


def network():
    """A convolution and a mean, valid by the checker."""
    weights = np.random.default_rng(0).normal(size=(64, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
            helper.make_node("ReduceMean", ["c", "axes"], ["y"], keepdims=0),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def prepared(given, model, **settings):
    """What comes of it, and how many bytes the caller's model has before and afterwards."""
    before = model.ByteSize()
    try:
        quant_pre_process(given, "prepared.onnx", **settings)
        outcome = "prepared"
    except Exception as error:
        outcome = type(error).__name__
    print(f"{type(given).__name__:<10} {settings}: {outcome}; the model has {model.ByteSize()} of {before} bytes")
    return outcome, model.ByteSize() / before


model = network()
onnx.save(model, "model.onnx")
assert prepared("model.onnx", model, skip_symbolic_shape=True) == ("prepared", 1.0)
assert prepared(model, model) == ("prepared", 1.0)
outcome, left = prepared(model, model, skip_symbolic_shape=True)
assert outcome != "prepared" and left < 0.1, "it has been mended"
PYTHON
