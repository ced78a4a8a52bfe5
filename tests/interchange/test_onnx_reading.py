"""ONNX operators are read as the standard says, or refused by node, attribute and value."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_files import Builder, agree, ours, random, run
from onnx_graphs import write_graph
from onnx_nodes import compare

import ternary_ops as tops
from ternary_ops.errors import FormatError, UnsupportedModel
from ternary_ops.interchange import load_onnx


def refused(path: Path, *words: str) -> None:
    """By an error that names all of `words`."""
    with pytest.raises(UnsupportedModel) as caught:
        load_onnx(path)
    for word in words:
        assert word in str(caught.value)


def test_a_bias_added_behind_a_layer_that_is_used_twice(tmp_path: Path) -> None:
    b = Builder()
    x = b.add("Conv", ["image", b.constant("c.weight", random(4, 3, 3, 3))], "c")
    y = b.add("Add", [x, b.constant("bias", random(4, 1, 1))], "y")
    b.add("Mul", [x, y], "out")
    agree(b.save(tmp_path / "a.onnx", "out"), random(2, 3, 9, 8))
    # Alone, it becomes the layer's bias, and the network compiles.
    b = Builder()
    x = b.add("Conv", ["image", b.constant("c.weight", random(4, 3, 3, 3))], "c")
    b.add("Sub", [x, b.constant("bias", random(4, 1, 1))], "out")
    path = b.save(tmp_path / "b.onnx", "out")
    agree(path, random(2, 3, 9, 8))
    assert load_onnx(path).get_submodule("c").bias is not None


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), (1,), (8,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("first", [True, False])
def test_constants_broadcast_as_in_onnx(
    op: str, shape: tuple[int, ...], first: bool, tmp_path: Path
) -> None:
    b = Builder()
    c = b.constant("c", np.abs(random(*shape)) + 0.5)
    b.add(op, [c, "image"] if first else ["image", c], "out")
    path, x = b.save(tmp_path / "a.onnx", "out"), np.abs(random(2, 3, 5, 8)) + 0.5
    agree(path, x)
    if shape[-2:] == (1, 1) and len(shape) < 5 and not (first and op in ("Sub", "Div")):
        program = tops.compile(load_onnx(path), torch.from_numpy(x))
        np.testing.assert_allclose(program(x), run(path, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wanted", [[-1, 48], [0, -1], [-1, 8], [2, -1], [0, 0, -1], [3, 0, -1, 2], [-1]]
)
@pytest.mark.parametrize("image", [(2, 3, 6, 8), ("N", 3, "H", "W")])
def test_reshape(wanted: list[int], image: tuple[Any, ...], tmp_path: Path) -> None:
    b = Builder()
    b.add("Reshape", ["image", b.constant("shape", wanted, np.int64)], "out")
    agree(b.save(tmp_path / "a.onnx", "out", image=image), random(2, 3, 6, 8))


def test_reshape_by_an_attribute_and_by_sizes(tmp_path: Path) -> None:
    b = Builder()
    b.nodes.append(helper.make_node("Reshape", ["image"], ["out"], shape=[0, -1]))
    b.save(tmp_path / "old.onnx", "out", opset=1)
    x = random(2, 3, 4, 4)
    np.testing.assert_array_equal(ours(tmp_path / "old.onnx", x), x.reshape(2, -1))
    b = Builder()
    sizes = b.add("Shape", ["image"], "sizes")
    first = b.add("Gather", [sizes, b.constant("first", [0, 1], np.int64)], "batch")
    twice = b.add("Mul", [first, b.constant("two", [2, 1], np.int64)], "twice")
    wanted = b.add("Concat", [twice, b.constant("rest", [-1], np.int64)], "wanted", axis=0)
    b.add("Reshape", ["image", wanted], "out")
    path = b.save(tmp_path / "a.onnx", "out")
    for n in (2, 5):
        agree(path, random(n, 3, 6, 4))


def test_a_size_beside_a_computed_value_is_refused(tmp_path: Path) -> None:
    b = Builder()
    sizes = b.add("Shape", ["image"], "sizes")
    mean = b.add("ReduceMean", ["image"], "mean", axes=[0, 1, 2, 3], keepdims=0)
    mean = b.add("Reshape", [mean, b.constant("one", [1], np.int64)], "number")
    whole = b.add("Cast", [mean], "whole", to=TensorProto.INT64)
    wanted = b.add("Concat", [sizes, whole], "wanted", axis=0)
    b.add("Reshape", ["image", wanted], "out")
    refused(b.save(tmp_path / "a.onnx", "out"), "Cast '/whole/Cast'", "to = INT64")


def test_softmax_before_opset_13_is_over_all_that_follows(tmp_path: Path) -> None:
    b = Builder()
    b.add("Softmax", ["image"], "out", axis=1)
    refused(b.save(tmp_path / "a.onnx", "out", opset=11), "Softmax '/out/Softmax'", "axis = 1")
    agree(b.save(tmp_path / "b.onnx", "out", opset=13), random(2, 3, 4, 5))
    agree(b.save(tmp_path / "c.onnx", "out", opset=11, image=("N", 6)), random(2, 6))


def test_slopes_belong_to_the_last_axis_unless_shaped(tmp_path: Path) -> None:
    b = Builder()
    b.add("PRelu", ["image", b.constant("slope", random(3))], "out")
    refused(b.save(tmp_path / "a.onnx", "out"), "PRelu", "slopes [3]")
    agree(b.save(tmp_path / "b.onnx", "out", image=("N", 3)), random(4, 3))
    b = Builder()
    b.add("PRelu", ["image", b.constant("slope", random(3, 1, 1))], "out")
    agree(b.save(tmp_path / "c.onnx", "out"), random(2, 3, 4, 3))


def test_a_cast_to_integers_is_refused(tmp_path: Path) -> None:
    b = Builder()
    x = b.add("Cast", ["image"], "whole", to=TensorProto.INT32)
    b.add("Cast", [x], "out", to=TensorProto.FLOAT)
    refused(b.save(tmp_path / "a.onnx", "out"), "Cast '/whole/Cast'", "to = INT32")


def test_resizes_that_torch_does_otherwise_are_refused(tmp_path: Path) -> None:
    for at, word in (({"antialias": 1}, "antialias = 1"), ({"axes": [2, 3]}, "axes = [2, 3]")):
        b = Builder()
        scales = b.constant("scales", [1, 1, 0.5, 0.5])
        b.add("Resize", ["image", "", scales], "out", mode="linear", **at)
        refused(b.save(tmp_path / "a.onnx", "out", opset=18), "Resize '/out/Resize'", word)
    for place, mode in product(("half_pixel", "align_corners"), ("linear", "cubic")):
        b = Builder()
        sizes = b.constant("sizes", [2, 3, 7, 11], np.int64)
        at = {"mode": mode, "coordinate_transformation_mode": place}
        b.add("Resize", ["image", "", "", sizes], "out", **at)
        agree(b.save(tmp_path / "b.onnx", "out", image=(2, 3, 5, 6)), random(2, 3, 5, 6))
    b = Builder()
    scales = b.constant("scales", [1, 1, 0.5, 0.5])
    b.add("Resize", ["image", "", scales], "out", mode="cubic", cubic_coeff_a=-0.5)
    refused(b.save(tmp_path / "c.onnx", "out", opset=18), "Resize", "cubic_coeff_a = -0.75")


@pytest.mark.parametrize("kind", ["INT64", "UINT8", "FLOAT16", "DOUBLE"])
def test_other_numbers_than_float32_are_refused(kind: str, tmp_path: Path) -> None:
    b = Builder()
    b.add("Add", ["image", "image"], "out")
    number = TensorProto.DataType.Value(kind)
    refused(b.save(tmp_path / "a.onnx", "out", kind=number), "'image'", "float32", kind)
    half = np.float16 if kind == "FLOAT16" else np.float64
    b = Builder()
    b.add("Conv", ["image", b.constant("w", random(4, 3, 1, 1), half)], "out")
    refused(b.save(tmp_path / "b.onnx", "out"), "Conv '/out/Conv'", np.dtype(half).name)


def test_training_graphs_are_refused(tmp_path: Path) -> None:
    b = Builder()
    state = [b.constant(n, np.abs(random(3)) + 0.5) for n in "sbmv"]
    b.add("BatchNormalization", ["image", *state], "out", training_mode=1)
    refused(b.save(tmp_path / "a.onnx", "out"), "BatchNormalization", "training_mode = 1")
    b = Builder()
    ratio, yes = b.constant("ratio", 0.5), b.constant("yes", True, np.bool_)
    b.add("Dropout", ["image", ratio, yes], "out")
    refused(b.save(tmp_path / "b.onnx", "out"), "Dropout '/out/Dropout'", "training_mode = True")


def test_gemm_biases(tmp_path: Path) -> None:
    for shape in ((5,), (1, 5), (1,), ()):
        b = Builder()
        w, bias = b.constant("w", random(6, 5)), b.constant("b", random(*shape))
        b.add("Gemm", ["image", w, bias], "out", alpha=0.5, beta=-2.0)
        agree(b.save(tmp_path / "a.onnx", "out", image=("N", 6)), random(4, 6))
    b = Builder()
    w, bias = b.constant("w", random(6, 5)), b.constant("b", random(4, 5))
    b.add("Gemm", ["image", w, bias], "out")
    refused(b.save(tmp_path / "b.onnx", "out", image=(4, 6)), "Gemm '/out/Gemm'", "[4, 5]")


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6), (4, 3, 2, 5, 6)])
def test_batchnorm_and_pools_by_the_number_of_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    b = Builder()
    state = [b.constant(n, np.abs(random(3)) + 0.5) for n in "sbmv"]
    b.add("BatchNormalization", ["image", *state], "out")
    path = b.save(tmp_path / "a.onnx", "out", image=("N", *shape[1:]))
    if len(shape) == 5:
        refused(path, "BatchNormalization", "5 in 'image'")
    else:
        agree(path, random(*shape))
    if len(shape) == 3:
        b = Builder()
        b.add("GlobalAveragePool", ["image"], "out")
        path = b.save(tmp_path / "b.onnx", "out", image=shape)
        refused(path, "GlobalAveragePool", "3 in 'image'")


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pads_over_half_a_window_are_refused(op: str, tmp_path: Path) -> None:
    b = Builder()
    b.add(op, ["image"], "out", kernel_shape=[3, 3], pads=[2, 2, 2, 2])
    refused(b.save(tmp_path / "a.onnx", "out"), f"{op} '/out/{op}'", "pads = [2, 2, 2, 2]")


@pytest.mark.parametrize(
    "name",
    ["class.weight", "a.for.0.weight", "train.weight", "graph.weight", "forward.weight", "a..b.w",
     "_modules.weight", "weight.weight", "0.1.weight", "1x.weight", "é.weight", "²", "x/y:0"],
)  # fmt: skip
def test_any_name_of_a_weight_will_do(name: str, tmp_path: Path) -> None:
    b = Builder()
    x = b.add("Conv", ["image", b.constant(name, random(4, 3, 3, 3))], "c")
    # Inside the first layer's own name, and the same one again.
    inner = b.constant(f"{name.rpartition('.')[0] or name}.weight.weight", random(4, 4, 1, 1))
    x = b.add("Conv", [x, inner], "d")
    b.add("Conv", [x, inner], "out")
    path, image = b.save(tmp_path / "a.onnx", "out"), random(2, 3, 6, 5)
    agree(path, image)
    model = load_onnx(path)
    assert len(tops.plan(model, tops.TernaryConfig())) == 3
    program = tops.compile(model, torch.from_numpy(image))
    np.testing.assert_allclose(program(image), run(path, image), rtol=1e-4, atol=1e-4)


def test_a_later_definition_of_an_operator_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = Builder()
    b.add("Relu", ["image"], "out")
    path = b.save(tmp_path / "a.onnx", "out")
    load_onnx(path)
    schema = onnx.defs.get_schema("Relu", 14, "")

    class Later:
        since_version = 99
        name = schema.name

    monkeypatch.setattr(onnx.defs, "get_schema", lambda *_: Later)
    refused(path, "Relu '/out/Relu'", "opset 99")


def test_damaged_and_contradicting_files(tmp_path: Path) -> None:
    b = Builder()
    b.add("Conv", ["image", b.constant("w", random(4, 3, 3, 3))], "out")
    model = onnx.load(b.save(tmp_path / "a.onnx", "out"))
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(FormatError):
        load_onnx(tmp_path / "b.onnx")
    b = Builder()
    b.add("Conv", ["image", b.constant("w", random(4, 5, 3, 3))], "out")
    path = b.save(tmp_path / "c.onnx", "out", image=("N", 5, "H", "W"))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    path.write_bytes(model.SerializeToString())
    with pytest.raises((FormatError, UnsupportedModel), match="3"):
        load_onnx(path)


def test_random_nodes_equal_onnxruntime_or_are_refused(tmp_path: Path) -> None:
    """`python tests/support/onnx_nodes.py FIRST LAST` tries more seeds."""
    counts = compare(range(250), tmp_path / "node.onnx")
    assert counts["equal"] > 110


@pytest.mark.parametrize("quantized", [False, True])
def test_random_graphs_equal_onnxruntime(quantized: bool, tmp_path: Path) -> None:
    for seed in range(30):
        x = write_graph(tmp_path / "graph.onnx", seed, quantized)
        theirs, mine = run(tmp_path / "graph.onnx", x, plain=True), ours(tmp_path / "graph.onnx", x)
        assert mine.shape == theirs.shape, seed
        off = np.abs(mine - theirs) / max(float(np.abs(theirs).max()), 1e-2)
        # Codes in the middle may round the other way; what is lost or misread shows by far more.
        assert off.max() < (0.05 if quantized else 1e-4), seed
        assert off.mean() < (0.005 if quantized else 1e-5), seed
