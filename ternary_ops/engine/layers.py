# SPDX-License-Identifier: Apache-2.0
"""Read a PyTorch layer into what a program stores: codes or floats, scale, bias, window, ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.engine.ir import Array, Weight
from ternary_ops.errors import BadWeights, UnsupportedModel, need
from ternary_ops.nn import TernaryLayer
from ternary_ops.nn.packed import PackedLayer
from ternary_ops.ops import codes

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer, read.

    integer: its input is quantized, to `input_range` (None: not set). output_range: of the value of
    its fused chain (None: not set). follows: it has no say, and takes its input as it comes.
    """

    op: str
    weight: Weight
    attrs: dict[str, Any] = field(default_factory=dict)
    integer: bool = False
    input_range: Range | None = None
    output_range: Range | None = None
    follows: bool = False

    def image_of(self, bounds: Range) -> Range:
        """Range of a 1x1 depthwise layer's output, from that of its input."""
        scale, bias = self.weight.effective_scale(None), self.weight.bias
        ends = np.multiply.outer(np.array(bounds), scale) + (0 if bias is None else bias)
        return float(ends.min()), float(ends.max())


def read_layer(name: str, module: nn.Module) -> Layer:
    """Read one layer; raises UnsupportedModel or BadWeights naming it.

    A trainable layer gives its integer weights in every phase, even while it trains real ones.
    Layers whose activations stay float keep their codes, and meet a float input (weight-only).
    """
    op = "conv2d" if hasattr(module, "kernel_size") else "linear"
    attrs = _window(name, module) if op == "conv2d" else {}
    bias = None if module.bias is None else _floats(name, cast(Tensor, module.bias))
    if isinstance(module, (TernaryLayer, PackedLayer)):
        try:
            integers, scale = module.integer_weight()
        except BadWeights as error:
            raise BadWeights(f"{name}: {error}") from error
        params, given = _input_params(module), getattr(module, "output_range", None)
        return Layer(
            op,
            Weight(name, _kind(module), _filters(integers), _floats(name, scale), bias),
            attrs,
            _quantizes(module),
            None if params is None else range_of(*params),
            None if given is None or given.isnan().any() else (float(given[0]), float(given[1])),
        )
    values = _filters(torch.from_numpy(_floats(name, cast(Tensor, module.weight))))
    return Layer(op, Weight(name, "float", values, None, bias), attrs)


def read_batchnorm(name: str, module: nn.Module) -> Layer:
    """A BatchNorm that folds into nothing, as a depthwise 1x1 convolution of codes +1: with the
    running statistics it is y = x * scale + bias, the same steps a layer ends with.
    """
    mean, var = (_floats(name, cast(Tensor, t)) for t in (module.running_mean, module.running_var))
    scale = 1 / np.sqrt(var.astype(np.float64) + cast(float, module.eps))
    if module.weight is not None:
        scale = scale * _floats(name, cast(Tensor, module.weight))
    bias = -mean * scale
    if module.bias is not None:
        bias = bias + _floats(name, cast(Tensor, module.bias))
    ones = np.ones((len(mean), 1, 1, 1), np.int8)
    weight = Weight(name, "ternary", ones, scale.astype(np.float32), bias.astype(np.float32))
    return Layer("conv2d", weight, {"groups": len(mean)}, follows=True)


def range_of(scale: float | np.float32, zp: int) -> Range:
    """The range whose affine_params are exactly (scale, zp)."""
    return -zp * float(scale), (255 - zp) * float(scale)


def _kind(module: TernaryLayer | PackedLayer) -> str:
    return module.weights if isinstance(module, PackedLayer) else module.config.weights


def _quantizes(module: TernaryLayer | PackedLayer) -> bool:
    if isinstance(module, PackedLayer):
        return not bool(module.input_scale.isnan())
    return module.config.activations == "uint8"


def _input_params(module: TernaryLayer | PackedLayer) -> tuple[np.float32, int] | None:
    if isinstance(module, TernaryLayer):
        return module.input_params()
    if not _quantizes(module):
        return None
    return np.float32(module.input_scale), int(module.input_zero_point)


def _filters(weight: Tensor) -> Array:
    """PyTorch's [O, I, R, S] or [N, K] as [O, R, S, I]."""
    array = weight.detach().cpu().numpy()
    return codes.channels_last(array.reshape(*array.shape, *[1] * (4 - array.ndim)))


def _floats(name: str, values: Tensor) -> NDArray[np.float32]:
    array = values.detach().cpu().to(torch.float32).numpy()
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise BadWeights(
            need(f"{name} needs finite numbers", f"{array[at]} at {at}", "Train or load it anew.")
        )
    return np.ascontiguousarray(array)


def _window(name: str, module: Any) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution as a program says them."""
    if module.padding_mode != "zeros":
        raise UnsupportedModel(
            need(f"{name} needs padding_mode 'zeros'", repr(module.padding_mode), "Use zeros.")
        )
    padding = module.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(span % 2 for span in spans):
            raise UnsupportedModel(
                need(
                    f"{name} needs equal padding on both sides",
                    f"'same' around a kernel of {tuple(module.kernel_size)}",
                    "Use an odd kernel, or pad by numbers.",
                )
            )
        padding = tuple(span // 2 for span in spans)
    return {
        "stride": tuple(module.stride),
        "padding": tuple(padding),
        "dilation": tuple(module.dilation),
        "groups": module.groups,
    }
