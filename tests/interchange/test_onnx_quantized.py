"""Quantized ONNX files: what the package reads equals ONNX Runtime within rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_files import Builder, agree, random, run
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.interchange import load_onnx

Array = NDArray[np.float32]


def check(path: Path, x: Array, kinds: set[str] | None = None, codes: float = 1.0) -> None:
    """Module and program are as near to ONNX Runtime as rounding allows; kinds: of the program's
    weights.

    A code in the middle may round the other way: the module's result is then one or two codes of
    the last quantizer off, that of the program, whose floats stay as they are, up to three. Where
    weights are float, the program does not round what they multiply: `codes` of the coarsest.
    """
    theirs, model = run(path, x, plain=True), load_onnx(path)
    with torch.no_grad():
        module = model(torch.from_numpy(x)).numpy()
    program = tops.compile(model, torch.from_numpy(x))
    found = {w.kind for w in program.graph.weights}
    scales = activation_scales(path)
    bounds = 2.01 * scales[-1], codes * max(scales) if "float" in found else 3 * scales[-1]
    for made, bound in zip((module, program(x)), bounds, strict=True):
        assert made.shape == theirs.shape
        assert np.abs(made - theirs).max() <= bound
    if kinds is not None:
        assert found == kinds


def activation_scales(path: Path) -> list[float]:
    """Of all values that the file quantizes, in its order."""
    graph = onnx.load(path).graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in known]
    return [float(known[node.input[1]]) for node in nodes]


def layer(b: Builder, x: str, name: str, weight: Array, **at: Any) -> str:
    bias = b.constant(f"{name}.bias", random(len(weight)))
    return b.add("Conv", [x, b.weight(f"{name}.weight", weight), bias], name, **at)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("reader", ["GlobalAveragePool", "MaxPool", "Add", "Mul", "Concat"])
def test_values_are_clipped_where_a_quantizer_clips(
    dtype: Any, reader: str, tmp_path: Path
) -> None:
    """ONNX Runtime's quantizer leaves ReLU and Clip out, since codes from 0 on say the same."""
    b = Builder()
    x = b.pair("image", -4, 4, dtype)
    x = b.pair(layer(b, x, "c", random(6, 3, 3, 3), pads=[1, 1, 1, 1]), 0.0, 5.0, dtype)
    if reader == "MaxPool":
        at = {"kernel_shape": [2, 2], "strides": [2, 2]}
        y = b.add(reader, [x], "y", **at)
    else:
        inputs = [x] if reader == "GlobalAveragePool" else [x, x]
        y = b.add(reader, inputs, "y", **({"axis": 1} if reader == "Concat" else {}))
    b.pair(y, 0.0, 12.0, dtype)
    path = b.save(tmp_path / "a.onnx", b.nodes[-1].output[0], opset=17)
    check(path, random(2, 3, 8, 8))


def test_two_ranges_of_one_value(tmp_path: Path) -> None:
    b = Builder()
    x = b.pair("image", -4, 4)
    x = layer(b, x, "c", random(6, 3, 3, 3), pads=[1, 1, 1, 1])
    near, far = b.pair(x, -0.5, 0.5), b.pair(x, -8, 8)
    y = layer(b, near, "d", random(4, 6, 1, 1))
    z = layer(b, far, "e", random(4, 6, 1, 1) / 4)
    x = b.pair(b.add("Add", [b.pair(y, -20, 20), b.pair(z, -20, 20)], "sum"), -20, 20)
    path, image = b.save(tmp_path / "a.onnx", x, opset=17), random(2, 3, 8, 8)
    check(path, image)


def test_output_dtype(tmp_path: Path) -> None:
    b = Builder()
    scale = b.constant("scale", 0.05)
    codes = b.add("QuantizeLinear", ["image", scale], "codes", output_dtype=TensorProto.INT8)
    b.add("DequantizeLinear", [codes, scale], "out")
    agree(b.save(tmp_path / "a.onnx", "out", opset=21), 8 * random(2, 3, 5, 5), within=0.004)
    b = Builder()
    scale = b.constant("scale", 0.05)
    codes = b.add("QuantizeLinear", ["image", scale], "codes", output_dtype=TensorProto.INT16)
    b.add("DequantizeLinear", [codes, scale], "out")
    with pytest.raises(UnsupportedModel, match="QuantizeLinear '/codes.*INT16"):
        load_onnx(b.save(tmp_path / "b.onnx", "out", opset=21))


@pytest.mark.parametrize("alpha", [0.25, -1.5])
@pytest.mark.parametrize("turned", [0, 1])
def test_alpha_belongs_to_the_codes(alpha: float, turned: int, tmp_path: Path) -> None:
    b = Builder()
    x = b.pair("image", -4, 4)
    w = b.weight("fc.weight", random(5, 24) if turned else random(24, 5), axis=None)
    y = b.add("Gemm", [x, w, b.constant("b", random(5))], "y", alpha=alpha, transB=turned)
    z = b.add("Gemm", [x, w], "z", transB=turned)  # the same weight again
    out = b.pair(b.add("Add", [b.pair(y, -40, 40), b.pair(z, -40, 40)], "s"), -40, 40)
    path = b.save(tmp_path / "a.onnx", out, opset=17, image=("N", 24))
    # Half a code of y, of z and of their sum, which stay floats beside float weights.
    check(path, random(6, 24), {"int8"} if alpha > 0 else None, codes=1.5)


def test_a_different_scale_behind_is_refused(tmp_path: Path) -> None:
    b = Builder()
    numbers = [b.constant("s", 0.1), b.constant("z", 7, np.uint8)]
    codes = b.add("QuantizeLinear", ["image", *numbers], "codes")
    b.add("DequantizeLinear", [codes, b.constant("t", 0.2), numbers[1]], "out")
    with pytest.raises(UnsupportedModel, match="DequantizeLinear '/out.*0.1.*zero point.*0.2"):
        load_onnx(b.save(tmp_path / "a.onnx", "out"))


def test_codes_that_leave_the_network_are_refused(tmp_path: Path) -> None:
    b = Builder()
    b.add("QuantizeLinear", ["image", b.constant("s", 0.1)], "out")
    path = b.save(tmp_path / "a.onnx", "out")
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("out", TensorProto.UINT8, ["N", 3, "H", "W"])
    )
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel, match="'out' as a tensor of float32.*UINT8"):
        load_onnx(path)


# What ONNX Runtime's quantizer makes of small networks, in every format.


def convolution(b: Builder, x: str, name: str, o: int, i: int, k: int = 3, **at: Any) -> str:
    weight = np.random.default_rng(len(name) + o * i).standard_normal((o, i, k, k))
    names = [
        b.constant(f"{name}.weight", weight / np.sqrt(i * k * k)),
        b.constant(f"{name}.bias", random(o) / 4),
    ]
    return b.add("Conv", [x, *names], name, pads=[k // 2] * 4, **at)


def network(kind: str) -> tuple[Builder, str]:
    b = Builder()
    x = convolution(b, "image", "stem", 8, 3)
    bounds = [b.constant("lo", 0.0), b.constant("hi", 0.9)]
    clip = kind in ("clip", "depthwise")
    x = b.add("Clip", [x, *bounds], "r") if clip else b.add("Relu", [x], "r")
    if kind == "residual":
        x = b.add("Add", [convolution(b, x, "body", 8, 8), x], "sum")
        x = convolution(b, b.add("Relu", [x], "r2"), "last", 4, 8, 1)
    elif kind == "concat":
        y = b.add("Relu", [convolution(b, x, "body", 8, 8)], "r2")
        x = convolution(b, b.add("Concat", [x, y], "both", axis=1), "last", 4, 16, 1)
    elif kind == "depthwise":
        y = convolution(b, x, "body", 8, 1, group=8)
        x = convolution(b, b.add("Clip", [y, *bounds], "r2"), "last", 4, 8, 1)
    elif kind == "gemm":
        x = b.add("Flatten", [b.add("GlobalAveragePool", [x], "mean")], "flat")
        x = b.add(
            "Gemm", [x, b.constant("fc.w", random(8, 5)), b.constant("fc.b", random(5))], "fc"
        )
    elif kind == "avgpool":
        x = b.add("AveragePool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
        x = convolution(b, x, "last", 4, 8, 1)
    return b, x


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: Array) -> None:
        self.left = [x]

    def get_next(self) -> Any:
        return {"image": self.left.pop()} if self.left else None


def formats() -> Iterator[tuple[Any, ...]]:
    u8, s8 = QuantType.QUInt8, QuantType.QInt8
    for channels in (False, True):
        for activations, weights in ((s8, s8), (u8, u8), (u8, s8)):
            yield QuantFormat.QDQ, activations, weights, channels, {}
        for option in ("AddQDQPairToWeight", "QDQKeepRemovableActivations"):
            yield QuantFormat.QDQ, u8, s8, channels, {option: True}
        yield QuantFormat.QOperator, u8, s8, channels, {}


@pytest.mark.parametrize(
    "kind", ["relu", "clip", "residual", "concat", "depthwise", "gemm", "avgpool"]
)
def test_every_format_of_onnxruntimes_quantizer(kind: str, tmp_path: Path) -> None:
    """Beyond the calibrated range too, where codes clip."""
    b, last = network(kind)
    source, path = b.save(tmp_path / "f.onnx", last, opset=17), tmp_path / "q.onnx"
    rng = np.random.default_rng(3)
    sample = rng.standard_normal((3, 3, 10, 10)).astype(np.float32)
    x = np.concatenate([sample[:1], 3 * rng.standard_normal((1, 3, 10, 10)).astype(np.float32)])
    compared = 0
    for form, activations, weights, channels, extra in formats():
        quantize_static(
            str(source),
            str(path),
            Reader(sample),
            quant_format=form,
            activation_type=activations,
            weight_type=weights,
            per_channel=channels,
            extra_options=extra,
        )
        if form is QuantFormat.QOperator:
            with pytest.raises(UnsupportedModel, match="QLinearConv '/stem"):
                load_onnx(path)
            continue
        check(path, x, {"int8"} if weights is QuantType.QInt8 else None)
        compared += 1
    assert compared == 10
