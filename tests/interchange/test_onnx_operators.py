# SPDX-License-Identifier: Apache-2.0
"""Operators that have a case of their own, out to ONNX Runtime and in from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import activations, program_cases, rearrange
from onnx_files import Builder, agree, random, run
from programs import PROGRAMS, example
from programs import Builder as ProgramBuilder

import ternary_ops as tops
from ternary_ops.errors import FormatError, UnsupportedModel
from ternary_ops.interchange import load_onnx, save_onnx
from ternary_ops.program.interpret import simulate
from ternary_ops.runtime import Program

_EXPORTED = sorted(set(program_cases()) - {"adaptive_max_pool2d"})  # ONNX pools whole images


@pytest.mark.parametrize("form", ["exact", "qdq"])
@pytest.mark.parametrize("name", [*_EXPORTED, "tokens", "broadcast", "matmul"])
def test_onnx_runtime_gives_the_programs_results(name: str, form: str, tmp_path: Path) -> None:
    graph = PROGRAMS[name](1)
    x = example(graph, 2, 9, 11, 1)
    save_onnx(Program(graph, x.shape), tmp_path / "net.onnx", form)
    for batch in (x, example(graph, 3, 12, 7, 2)):
        want = simulate(graph, batch)[-1]
        got = run(tmp_path / "net.onnx", batch)
        # Forms that fuse may round to the next code, and resize in another order.
        rounds = ("tokens", "broadcast", "matmul", "reduce", "rearrange", "pad", "crop")
        within = {**dict.fromkeys(rounds, 0.05), "constant": 1e-4}.get(name, 1e-5)
        within = within if form == "qdq" else 1e-5
        np.testing.assert_allclose(got, want, rtol=0, atol=within * np.abs(want).max())


@pytest.mark.parametrize("form", ["exact", "qdq"])
def test_maxima_of_whole_images(form: str, tmp_path: Path) -> None:
    b = ProgramBuilder(0, c=5)
    q = b("conv2d", b("quantize", 0, y=b.params()), w=b.weight("int8", 9, 5), y=b.params())
    q = b("dequantize", b("adaptive_max_pool2d", q, size=(1, 1)))
    x = b("conv2d", 0, w=b.weight("float", 9, 5), clamp=(None, 2.0))
    b("add", b("adaptive_max_pool2d", x, size=(1, 1)), q)
    graph, x = b.graph(), example(b.graph(), 2, 9, 11, 1)
    save_onnx(Program(graph, x.shape), tmp_path / "net.onnx", form)
    want = simulate(graph, x)[-1]
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", activations.FUNCTIONS)
def test_functions_of_floats_are_onnxs_own_or_refused_by_name(name: str, tmp_path: Path) -> None:
    b = ProgramBuilder(0, c=4)
    b("activation", 0, fn=name, params=activations.FUNCTIONS[name][0])
    x = 3 * example(b.graph(), 2, 9, 11)
    if activations.DOMAINS.get(name, (-1.0, 1.0))[0] > 0:
        x = np.abs(x) + np.float32(0.01)
    try:
        save_onnx(Program(b.graph(), x.shape), tmp_path / "net.onnx")
    except UnsupportedModel as error:
        assert name in str(error) and name in ("gelu", "gelu_tanh", "mish", "softplus")
        return
    want = simulate(b.graph(), x)[-1]
    np.testing.assert_allclose(run(tmp_path / "net.onnx", x), want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("form", ["float", "int8"])
def test_a_hard_sigmoid_of_any_slope_is_one_function(form: str, tmp_path: Path) -> None:
    b = Builder()
    image = b.add("Conv", ["image", b.constant("w", random(6, 3, 3, 3))], "c")
    gate = b.add("HardSigmoid", [image], "hs", alpha=0.3, beta=0.4)
    b.add("Mul", [image, gate], "y")
    path, x = b.save(tmp_path / "net.onnx", "y"), random(2, 3, 9, 8)
    agree(path, x)
    model: Any = load_onnx(path)
    if form == "int8":
        tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8")))
        tops.calibrate(model, [torch.from_numpy(x)])
    program = tops.compile(model, torch.from_numpy(x))
    (node,) = (n for n in program.graph.nodes if n.op == "activation")
    assert node.attrs["fn"] == "affine_hardsigmoid"
    np.testing.assert_allclose(node.attrs["params"], (0.3, 0.4), rtol=1e-6)
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    within = 1e-5 if form == "float" else 0.02
    np.testing.assert_allclose(program(x), want, rtol=0, atol=within * np.abs(want).max())
    save_onnx(program, tmp_path / "out.onnx")
    out = run(tmp_path / "out.onnx", x)
    np.testing.assert_allclose(out, program(x), rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [1, 2, 3, 2], [2, 0, 1, 1]])
def test_convolutions_with_uneven_pads_come_in_and_go_out(pads: list[int], tmp_path: Path) -> None:
    b = Builder()
    b.add("Conv", ["image", b.constant("w", random(6, 3, 3, 3))], "y", pads=pads, strides=[2, 1])
    agree(b.save(tmp_path / "net.onnx", "y"), random(2, 3, 9, 8))


def test_moved_axes_go_out_and_come_in(tmp_path: Path) -> None:
    """Sizes stay free on the way."""
    b, free = ProgramBuilder(0, c=12), (-1,)
    x = b("conv2d", 0, w=b.weight("float", 12, 12, 3, 3), padding=(1, 1))
    x = rearrange.move(b, x, ((3, 4), free, free), (1, 0, 2, 3), (2, 1, 1))
    x = b(
        "crop", b("pad", x, before=(1, 2), after=(0, 1), mode="reflect"), begin=(1, 0), end=(0, 1)
    )
    x = b("concat", x, x, axis=3)
    x = rearrange.move(b, x, (free, free, free), (0, 1, 2), (1, 2), 3)
    b("softmax", b("linear", x, w=b.weight("float", 8, 12)))
    graph = b.graph()
    x, other = example(graph, 2, 9, 11), example(graph, 3, 12, 7)
    first = Program(graph, x.shape)
    save_onnx(first, tmp_path / "net.onnx")
    again = tops.compile(load_onnx(tmp_path / "net.onnx"), torch.from_numpy(x))
    for batch in (x, other):
        np.testing.assert_allclose(again(batch), first(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_normalization_comes_in(groups: int, tmp_path: Path) -> None:
    b = Builder()
    image = b.add("Conv", ["image", b.constant("w", random(6, 3, 3, 3))], "c", pads=[1, 1, 1, 1])
    vectors = [b.constant("scale", random(6)), b.constant("bias", random(7)[:6])]
    b.add("GroupNormalization", [image, *vectors], "y", num_groups=groups, epsilon=1e-3)
    agree(b.save(tmp_path / "net.onnx", "y", opset=21), random(2, 3, 9, 8))
    with pytest.raises(FormatError, match="GroupNormalization is deprecated"):
        load_onnx(b.save(tmp_path / "old.onnx", "y", opset=18))


@pytest.mark.parametrize(
    "op", ["ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"]
)
@pytest.mark.parametrize("axes", [[1], [2, 3], [-1]], ids=str)
def test_reductions_come_in(op: str, axes: list[int], tmp_path: Path) -> None:
    b = Builder()
    image = b.add("Conv", ["image", b.constant("w", random(5, 3, 3, 3))], "c")
    places: dict[str, Any] = {"axes": axes} if op != "ReduceSum" else {}
    inputs = [image] if places else [image, b.constant("axes", axes, np.int64)]
    b.add("Mul", [b.add(op, inputs, "r", keepdims=1, **places), image], "y")
    agree(b.save(tmp_path / "net.onnx", "y"), random(2, 3, 9, 8))


@pytest.mark.parametrize(
    "name", ["Abs", "Cos", "Erf", "Neg", "Reciprocal", "Selu", "Softplus", "Softsign", "Sqrt"]
)
def test_functions_come_in(name: str, tmp_path: Path) -> None:
    b = Builder()
    image = b.add("Conv", ["image", b.constant("w", random(4, 3, 1, 1))], "c")
    above = b.add("Add", [b.add("Mul", [image, image], "s"), b.constant("one", 1.0)], "a")
    x = image if name in ("Abs", "Cos", "Erf", "Neg", "Selu", "Softplus", "Softsign") else above
    agree(b.save(tmp_path / "net.onnx", b.add(name, [x], "y")), random(2, 3, 5, 6))


def test_log_softmax_powers_and_maxima_come_in(tmp_path: Path) -> None:
    b = Builder()
    image = b.add("Conv", ["image", b.constant("w", random(4, 3, 1, 1))], "c")
    shares = b.add("LogSoftmax", [image], "l", axis=1)
    most = b.add("GlobalMaxPool", [b.add("Pow", [image, b.constant("three", 3.0)], "p")], "m")
    agree(b.save(tmp_path / "net.onnx", b.add("Mul", [shares, most], "y")), random(2, 3, 5, 6))
