# SPDX-License-Identifier: Apache-2.0
"""Which torch layer or function an ONNX operator is."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ternary_ops.interchange import facts
from ternary_ops.interchange.facts import Attributes, Made, Translate
from ternary_ops.interchange.library import Refused
from ternary_ops.interchange.ranges import Codes

if TYPE_CHECKING:
    from ternary_ops.interchange.loading import Loader


def _pads(at: Attributes, axes: int = 2) -> tuple[int, ...]:
    """Padding per axis; equal on both sides, which is all that torch layers know."""
    automatic = at.get("auto_pad", b"NOTSET").decode()
    if automatic not in ("NOTSET", "VALID"):
        raise Refused("explicit pads", automatic)
    pads = list(at.get("pads", [0] * 2 * axes))
    if pads[:axes] != pads[axes:]:
        raise Refused("equal pads on both sides", pads)
    return tuple(pads[:axes])


def _pair(values: Any, name: str) -> tuple[int, int]:
    if len(values) != 2:
        raise Refused(f"two-dimensional {name}", list(values))
    return int(values[0]), int(values[1])


def _conv(loader: Loader, node: Any, at: Attributes) -> Made:
    weight, bias = loader.tensor(node, 1), loader.constant(node, 2)
    if weight.ndim != 4:
        raise Refused("filters [O, I, R, S]", list(weight.shape))
    groups, (o, i, r, s) = int(at.get("group", 1)), weight.shape
    layer = nn.Conv2d(
        *(i * groups, o, (r, s)),
        stride=_pair(at.get("strides", (1, 1)), "strides"),
        padding=_pair(_pads(at), "pads"),
        dilation=_pair(at.get("dilations", (1, 1)), "dilations"),
        groups=groups,
        bias=bias is not None,
    )
    _fill(layer, weight, None if bias is None else loader.tensor(node, 2))
    return loader.layer(node, layer, loader.value(node, 0), node.input[1])


def _gemm(loader: Loader, node: Any, at: Attributes) -> Made:
    if at.get("transA", 0) or not loader.is_constant(node.input[1]):
        raise Refused("rows times a constant weight", "something else")
    weight = loader.tensor(node, 1) * float(at.get("alpha", 1.0))
    weight = weight if at.get("transB", 0) else weight.T
    bias = loader.constant(node, 2)
    scaled = None if bias is None else loader.tensor(node, 2) * float(at.get("beta", 1.0))
    return _linear(loader, node, weight, scaled, plain=bool(at.get("transB", 0)))


def _matmul(loader: Loader, node: Any, at: Attributes) -> Made:
    if not loader.is_constant(node.input[1]):
        raise Refused("a product with a constant weight", "two computed values")
    weight = loader.tensor(node, 1)
    if weight.ndim != 2:
        raise Refused("a weight [K, N]", list(weight.shape))
    return _linear(loader, node, weight.T, None, plain=False)


def _linear(loader: Loader, node: Any, weight: Tensor, bias: Tensor | None, plain: bool) -> fx.Node:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    _fill(layer, weight, None if bias is None else bias.reshape(-1))
    codes = loader.codes.get(node.input[1])
    if codes is not None and not plain:
        loader.codes[node.input[1]] = Codes(codes.values.T, codes.scale, 1 - codes.axis)
    return loader.layer(node, layer, loader.value(node, 0), node.input[1])


@torch.no_grad()
def _fill(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight.copy_(weight)
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias)


def _batchnorm(loader: Loader, node: Any, at: Attributes) -> Made:
    if at.get("training_mode", 0):
        raise Refused("BatchNorm in eval mode", "training mode")
    scale, bias, mean, var = (loader.tensor(node, n) for n in range(1, 5))
    layer = nn.BatchNorm2d(len(scale), eps=float(at.get("epsilon", 1e-5)))
    state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
    layer.load_state_dict(state, strict=False)
    return loader.layer(node, layer, loader.value(node, 0), node.input[1])


def _max_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    if len(node.output) > 1:
        raise Refused("a pool without indices", "indices")
    kernel = _pair(at["kernel_shape"], "kernel")
    layer = nn.MaxPool2d(
        kernel,
        _pair(at.get("strides", (1, 1)), "strides"),
        _pair(_pads(at), "pads"),
        _pair(at.get("dilations", (1, 1)), "dilations"),
        ceil_mode=bool(at.get("ceil_mode", 0)),
    )
    return loader.layer(node, layer, loader.value(node, 0))


def _average_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    if tuple(at.get("dilations", (1, 1))) != (1, 1):
        raise Refused("a pool without dilation", at["dilations"])
    layer = nn.AvgPool2d(
        _pair(at["kernel_shape"], "kernel"),
        _pair(at.get("strides", (1, 1)), "strides"),
        _pair(_pads(at), "pads"),
        ceil_mode=bool(at.get("ceil_mode", 0)),
        count_include_pad=bool(at.get("count_include_pad", 0)),
    )
    return loader.layer(node, layer, loader.value(node, 0))


def _global_pool(loader: Loader, node: Any, at: Attributes) -> Made:
    return loader.layer(node, nn.AdaptiveAvgPool2d(1), loader.value(node, 0))


def _reduce_mean(loader: Loader, node: Any, at: Attributes) -> Made:
    axes = at.get("axes") or loader.constant(node, 1)
    found = sorted(int(a) % 4 for a in (axes if axes is not None else ()))
    if found != [2, 3]:
        raise Refused("a mean over H and W", axes if axes is None else list(axes))
    x = loader.value(node, 0)
    return loader.call(torch.mean, x, (2, 3), keepdim=bool(at.get("keepdims", 1)))


def _clip(loader: Loader, node: Any, at: Attributes) -> Made:
    bounds: list[float | None] = []
    for number, name in ((1, "min"), (2, "max")):
        given = loader.constant(node, number) if "min" not in at and "max" not in at else None
        value = at.get(name) if given is None else float(given)
        bounds.append(None if value is None or abs(value) > 3e38 else float(value))
    x = loader.value(node, 0)
    if bounds == [None, None]:
        return x
    return loader.call(torch.clamp, x, *bounds)


def _both(loader: Loader, node: Any) -> tuple[Any, Any] | None:
    """Two traced values; a number in the place of one. None where a constant is no number."""
    found: list[Any] = []
    for number in (0, 1):
        name = node.input[number]
        if not loader.is_constant(name):
            found.append(loader.value(node, number))
            continue
        array = loader.constants[name]
        if array.size != 1:
            return None
        found.append(float(array.reshape(-1)[0]))
    return found[0], found[1]


def _add(loader: Loader, node: Any, at: Attributes) -> Made:
    both = _both(loader, node)
    if both is not None:
        return loader.call(operator.add, *both)
    # What exporters make of a linear layer without Gemm, or of a convolution's bias.
    number = int(loader.is_constant(node.input[1]))
    x, bias = loader.value(node, 1 - number), loader.tensor(node, number)
    module = loader.root.get_submodule(str(x.target)) if x.op == "call_module" else None
    if isinstance(module, (nn.Linear, nn.Conv2d)) and not x.users:
        wide = len(module.weight)
        shape = (wide,) if isinstance(module, nn.Linear) else (wide, 1, 1)
        if module.bias is None and tuple(bias.shape[-len(shape) :]) == shape:
            module.bias = nn.Parameter(bias.reshape(-1).clone())
            return x
    raise Refused("a sum of two values or with a number", f"a constant {list(bias.shape)}")


def _arithmetic(function: Any) -> Translate:
    def translate(loader: Loader, node: Any, at: Attributes) -> Made:
        both = _both(loader, node)
        if both is None:
            raise Refused("two values or a number", "a constant tensor")
        return loader.call(function, *both)

    return translate


def _unary(function: Any, **names: tuple[str, float]) -> Translate:
    """A function of one value; names: its arguments, with the attribute and default of each."""

    def translate(loader: Loader, node: Any, at: Attributes) -> Made:
        given = {ours: at.get(theirs, default) for ours, (theirs, default) in names.items()}
        return loader.call(function, loader.value(node, 0), **given)

    return translate


def _hard_sigmoid(loader: Loader, node: Any, at: Attributes) -> Made:
    alpha, beta = at.get("alpha", 0.2), at.get("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-4 or abs(beta - 0.5) > 1e-6:
        raise Refused("alpha 1/6 and beta 0.5, as torch has them", (alpha, beta))
    return loader.call(F.hardsigmoid, loader.value(node, 0))


def _prelu(loader: Loader, node: Any, at: Attributes) -> Made:
    slope = loader.tensor(node, 1).reshape(-1)
    layer = nn.PReLU(len(slope))
    with torch.no_grad():
        layer.weight.copy_(slope)
    return loader.layer(node, layer, loader.value(node, 0), node.input[1])


def _softmax(loader: Loader, node: Any, at: Attributes) -> Made:
    return loader.call(F.softmax, loader.value(node, 0), dim=int(at.get("axis", -1)))


def _concat(loader: Loader, node: Any, at: Attributes) -> Made:
    if any(name in loader.sizes for name in node.input):
        loader.sizes[node.output[0]] = [
            size
            for name in node.input
            for size in (loader.sizes.get(name) or loader.constants[name].reshape(-1).tolist())
        ]
        return None
    if all(loader.is_constant(name) for name in node.input):
        parts = [np.atleast_1d(loader.constants[name]) for name in node.input]
        return np.concatenate(parts, int(at["axis"]))
    values = [loader.value(node, number) for number in range(len(node.input))]
    return loader.call(torch.cat, values, dim=int(at["axis"]))


def _flatten(loader: Loader, node: Any, at: Attributes) -> Made:
    if int(at.get("axis", 1)) != 1:
        raise Refused("flatten from axis 1", at["axis"])
    return loader.call(torch.flatten, loader.value(node, 0), 1)


def _reshape(loader: Loader, node: Any, at: Attributes) -> Made:
    """[N, rest]: what the end of a classifier does."""
    given = loader.constants.get(node.input[1])
    wanted = loader.sizes.get(node.input[1]) if given is None else [int(v) for v in given]
    if loader.is_constant(node.input[0]) and given is not None:
        return loader.constants[node.input[0]].reshape([int(v) for v in given])
    x = loader.value(node, 0)
    if wanted is None or len(wanted) != 2 or (wanted[0] not in (-1, 0, 1) and wanted[1] != -1):
        raise Refused("a reshape to [N, K]", wanted if wanted is not None else "a computed shape")
    return loader.call(torch.flatten, x, 1)


def _squeeze(loader: Loader, node: Any, at: Attributes) -> Made:
    axes = at.get("axes") or loader.constant(node, 1)
    if loader.is_constant(node.input[0]):
        given = tuple(int(a) for a in (axes if axes is not None else ()))
        return np.squeeze(loader.constants[node.input[0]], given)
    if axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
        raise Refused("axes 2 and 3", axes)
    return loader.call(torch.flatten, loader.value(node, 0), 1)


def _resize(loader: Loader, node: Any, at: Attributes) -> Made:
    mode = at.get("mode", b"nearest").decode()
    place = at.get("coordinate_transformation_mode", b"half_pixel").decode()
    scales = loader.constant(node, 2) if len(node.input) > 2 else None
    if node.op_type == "Upsample":
        scales, place, at = loader.constant(node, 1), "asymmetric", at | {"nearest_mode": b"floor"}
    if scales is None or scales.size != 4 or list(scales[:2]) != [1, 1]:
        raise Refused("constant scales of H and W", None if scales is None else list(scales))
    zoom = (float(scales[2]), float(scales[3]))
    x = loader.value(node, 0)
    rounding = at.get("nearest_mode", b"round_prefer_floor").decode()
    whole = all(z.is_integer() for z in zoom)
    if mode == "nearest" and whole and (place, rounding) in _NEAREST:
        return loader.call(F.interpolate, x, scale_factor=zoom, mode="nearest")
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel"):
        return loader.call(
            F.interpolate, x, scale_factor=zoom, mode="bilinear", align_corners=False
        )
    raise Refused("nearest by whole factors, or linear with half pixels", f"{mode}, {place}")


def _depth_to_space(loader: Loader, node: Any, at: Attributes) -> Made:
    if at.get("mode", b"DCR").decode() != "CRD":
        raise Refused("mode CRD, torch's pixel shuffle", "DCR")
    return loader.call(F.pixel_shuffle, loader.value(node, 0), int(at["blocksize"]))


# What torch's nearest neighbours are, for whole factors.
_NEAREST = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")}

TRANSLATE: dict[str, Translate] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batchnorm,
    "Cast": facts.same,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": facts.constant,
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": facts.dequantize_linear,
    "Div": _arithmetic(operator.truediv),
    "Dropout": facts.same,
    "Elu": _unary(F.elu, alpha=("alpha", 1.0)),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Flatten": _flatten,
    "Gather": facts.gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": facts.same,
    "LeakyRelu": _unary(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _arithmetic(operator.mul),
    "PRelu": _prelu,
    "QuantizeLinear": facts.quantize_linear,
    "ReduceMean": _reduce_mean,
    "Relu": _unary(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": facts.shape,
    "Sigmoid": _unary(torch.sigmoid),
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Tanh": _unary(torch.tanh),
    "Unsqueeze": facts.unsqueeze,
    "Upsample": _resize,
}
