"""Other peers, where they are installed: the inference engines ONNX Runtime and OpenVINO, and loops compiled by numba.

They do the forward pass, float32, NCHW. The engines have the weights as constants and pack them before the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from fastconv.bench import loops
from fastconv.bench.layers import ADAPTIVE_POOLINGS, Case
from fastconv.bench.peers import Work, inputs


@dataclass(frozen=True)
class EnginePeer:
    """What takes part in the forward pass only; `needs` are the packages that it cannot do without."""

    name: str
    needs: tuple[str, ...]
    covers: Callable[[Case], bool]
    build: Callable[[Case], Work]

    @property
    def missing(self) -> str:
        """The first package that is not installed; empty if all are."""
        return next((package for package in self.needs if find_spec(package) is None), "")

    def does(self, case: Case, pass_: str, layout: str, dtype: torch.dtype) -> bool:
        here = (pass_, layout, dtype) == ("forward", "channels_first", torch.float32)
        return here and self.covers(case)

    def prepare(self, case: Case, pass_: str, layout: str, dtype: torch.dtype = torch.float32) -> Work:
        return self.build(case)


def _onnx_covers(case: Case) -> bool:
    if case.operator in ADAPTIVE_POOLINGS:
        return set(case.kernel) == {1}
    return case.operator != "local_response_norm" or case.kernel[0] % 2 == 1


def _openvino_covers(case: Case) -> bool:
    """All but a pooling with ceil_mode whose last window would start behind the input: OpenVINO keeps that window."""
    cut = False
    if case.parameters.get("ceil_mode"):
        parameters = (case.spatial(name) for name in ("stride", "padding", "dilation"))
        for size, out, kernel, stride, pad, dilation in zip(
            case.shape[2:], case.output_shape[2:], case.kernel, *parameters, strict=True
        ):
            room = size + 2 * pad - dilation * (kernel - 1) - 1
            cut |= out < -(-room // stride) + 1
    return _onnx_covers(case) and not cut


def onnx_model(case: Case) -> bytes:
    """The case as an ONNX model of one operator, x to y."""
    onnx = import_module("onnx")
    helper = onnx.helper
    weights = inputs(case, "channels_first")[1:]
    names = ["x", "weight", "bias"][: 1 + len(weights)]
    node = helper.make_node(*_onnx_operator(case), names, ["y"], **_onnx_attributes(case))
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", case.shape), ("y", case.output_shape))
    ]
    constants = [
        onnx.numpy_helper.from_array(weight.numpy(), name) for name, weight in zip(names[1:], weights, strict=True)
    ]
    graph = helper.make_graph([node], "case", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return model.SerializeToString()


def _onnx_operator(case: Case) -> tuple[str]:
    if case.is_convolution:
        return ("ConvTranspose" if case.is_transposed else "Conv",)
    if case.operator == "local_response_norm":
        return ("LRN",)
    kind = "Average" if "avg" in case.operator else "Max"
    return (f"Global{kind}Pool" if case.operator in ADAPTIVE_POOLINGS else f"{kind}Pool",)


def _onnx_attributes(case: Case) -> dict[str, Any]:
    parameters = case.parameters
    if case.operator == "local_response_norm":
        return {
            "size": case.kernel[0],
            "alpha": parameters["alpha"],
            "beta": parameters["beta"],
            "bias": parameters["k"],
        }
    if case.operator in ADAPTIVE_POOLINGS:
        return {}
    attributes: dict[str, Any] = {
        "kernel_shape": case.kernel,
        "strides": case.spatial("stride"),
        "pads": case.spatial("padding") * 2,
    }
    if "dilation" in parameters:
        attributes["dilations"] = case.spatial("dilation")
    if case.is_convolution:
        attributes["group"] = parameters["groups"]
        if case.is_transposed:
            attributes["output_padding"] = case.spatial("output_padding")
    else:
        attributes["ceil_mode"] = int(parameters["ceil_mode"])
        if "count_include_pad" in parameters:
            attributes["count_include_pad"] = int(parameters["count_include_pad"])
    return attributes


def _onnxruntime(case: Case) -> Work:
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait actively after a call would slow down whoever's turn is next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(onnx_model(case), options, providers=["CPUExecutionProvider"])
    feed = {"x": inputs(case, "channels_first")[0].numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(case: Case) -> Work:
    openvino = import_module("openvino")
    core = openvino.Core()
    properties = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = core.compile_model(core.read_model(onnx_model(case)), "CPU", properties)
    feed = inputs(case, "channels_first")[0].numpy()
    return lambda: torch.from_numpy(model([feed], share_inputs=True)[0])


ENGINES = (
    EnginePeer("onnxruntime", ("onnxruntime", "onnx"), _onnx_covers, _onnxruntime),
    EnginePeer("openvino", ("openvino", "onnx"), _openvino_covers, _openvino),
    EnginePeer("numba", ("numba",), loops.covers, loops.prepare),
)
