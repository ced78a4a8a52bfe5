# SPDX-License-Identifier: Apache-2.0
"""Read a PyTorch layer into what a program stores: codes or floats, scale, bias, window, ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.errors import BadWeights, need
from ternary_ops.layout import codes
from ternary_ops.nn import TernaryLayer
from ternary_ops.nn.geometry import Edges, edges_of
from ternary_ops.nn.packed import PackedLayer
from ternary_ops.nn.patterns import get_pattern
from ternary_ops.program.weight import Array, Planned, Weight

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer, read.

    integer: its input is quantized, to `input_range` (None: not set); fine: to eleven bits.
    output_range: of the value of its fused chain (None: not set). follows: it has no say, and takes
    its input as it comes.
    """

    op: str
    weight: Weight
    attrs: dict[str, Any] = field(default_factory=dict)
    integer: bool = False
    input_range: Range | None = None
    output_range: Range | None = None
    follows: bool = False
    fine: bool = False

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
    attrs = _window(module) if op == "conv2d" else {}
    bias = None if module.bias is None else _floats(name, cast(Tensor, module.bias))
    if isinstance(module, (TernaryLayer, PackedLayer)):
        try:
            integers, scale = module.integer_weight()
        except BadWeights as error:
            raise BadWeights(f"{name}: {error}") from error
        params, given = _input_params(module), getattr(module, "output_range", None)
        return Layer(
            op,
            Weight(
                name,
                _kind(module),
                _filters(integers),
                _floats(name, scale),
                bias,
                planned=_planned(module),
            ),
            attrs,
            _quantizes(module),
            None if params is None else range_of(*params),
            None if given is None or given.isnan().any() else (float(given[0]), float(given[1])),
            fine=isinstance(module, TernaryLayer) and module.config.activations == "uint11",
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
    return channelwise(name, scale.astype(np.float32), bias.astype(np.float32))


def read_slopes(name: str, module: nn.Module) -> NDArray[np.float32]:
    """The slopes [C] of a PReLU with one a channel."""
    return _floats(name, cast(Tensor, module.weight))


def channelwise(name: str, scale: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Layer:
    """y = x * scale + bias, scale and bias [C], as a depthwise convolution."""
    ones = np.ones((len(scale), 1, 1, 1), np.int8)
    weight = Weight(name, "ternary", ones, scale, bias)
    return Layer("conv2d", weight, {"groups": len(scale)}, follows=True)


def read_norm(name: str, module: nn.Module) -> Layer:
    """A LayerNorm over channels or a GroupNorm: its weight as filters [C, 1, 1, 1]."""
    m: Any = module
    attrs: dict[str, Any] = {"eps": m.eps}
    op, width = "layer_norm", getattr(m, "normalized_shape", (0,))[-1]
    if isinstance(module, nn.GroupNorm):
        op, width, attrs["groups"] = "group_norm", m.num_channels, m.num_groups
    weight = np.ones(width, np.float32) if m.weight is None else _floats(name, m.weight)
    bias = None if m.bias is None else _floats(name, m.bias)
    return Layer(op, Weight(name, "float", weight.reshape(-1, 1, 1, 1), None, bias), attrs)


def read_transposed(name: str, module: nn.Module) -> tuple[Layer, dict[str, Any]]:
    """A transposed convolution as a convolution with one output channel for each of the stride's
    phases, and the pixel shuffle that puts the phases where they belong.

    Output pixel s*m + a is the sum over taps t with (a + padding - t * dilation) divisible by s of
    input pixel m + that quotient.
    """
    m: Any = module
    axes = [_Phases.of(m, axis) for axis in (0, 1)]
    weight = _floats(name, cast(Tensor, m.weight))  # [I, O / groups, R, S]
    i, o, r_count, s_count = weight.shape
    (sh, sw), groups = m.stride, m.groups
    grouped = weight.reshape(groups, i // groups, o, r_count, s_count)
    filters = np.zeros((groups, o, sh, sw, axes[0].kernel, axes[1].kernel, i // groups), np.float32)
    for a, t, row in axes[0].taps:
        for b, u, col in axes[1].taps:
            filters[:, :, a, b, row, col] = grouped[:, :, :, t, u].swapaxes(1, 2)
    filters = filters.reshape(-1, axes[0].kernel, axes[1].kernel, i // groups)
    bias = None
    if m.bias is not None:
        bias = np.repeat(_floats(name, m.bias), sh * sw)
    padding = axes[0].padding, axes[1].padding
    layer = Layer(
        "conv2d", Weight(name, "float", filters, None, bias), {"padding": padding, "groups": groups}
    )
    return layer, {"factor": (sh, sw), "crop": (axes[0].crop, axes[1].crop)}


@dataclass(frozen=True)
class _Phases:
    """One axis of a transposed convolution as a plain one: taps are (phase, tap, place)."""

    kernel: int
    padding: int
    crop: int
    taps: list[tuple[int, int, int]]

    @classmethod
    def of(cls, m: Any, axis: int) -> _Phases:
        s, k, p, d = (v[axis] for v in (m.stride, m.kernel_size, m.padding, m.dilation))
        found = [
            (a, t, (a + p - t * d) // s)
            for a in range(s)
            for t in range(k)
            if (a + p - t * d) % s == 0
        ]
        first, last = min(j for _, _, j in found), max(j for _, _, j in found)
        # The output has (H - 1) * s + end pixels.
        end = d * (k - 1) + m.output_padding[axis] + 1 - 2 * p
        padding = max(-first, -(-end // s) - 1 + last, 0)
        kernel = max(padding + last, 0) + 1
        made = s * (2 * padding - kernel + 1)  # beyond s * H
        return cls(kernel, padding, made + s - end, [(a, t, j + padding) for a, t, j in found])


def range_of(scale: float | np.float32, zp: int) -> Range:
    """The range whose affine_params are exactly (scale, zp)."""
    return -zp * float(scale), (255 - zp) * float(scale)


def _kind(module: TernaryLayer | PackedLayer) -> str:
    return module.weights if isinstance(module, PackedLayer) else module.config.weights


def _planned(module: TernaryLayer | PackedLayer) -> Planned | None:
    """Zeros that the layer's config asks for; packed layers have no config."""
    if isinstance(module, PackedLayer) or module.config.zeros == 0:
        return None
    pattern = get_pattern(module.config.pattern)
    return Planned(pattern.name, pattern.rows, pattern.cols, module.config.zeros)


def _quantizes(module: TernaryLayer | PackedLayer) -> bool:
    if isinstance(module, PackedLayer):
        return not bool(module.input_scale.isnan())
    return module.config.integer_input


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
    finite = np.isfinite(array)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise BadWeights(
            need(f"finite numbers in {name}", f"{array[at]} at {at}", "Train or load it anew.")
        )
    return np.ascontiguousarray(array)


def _window(module: Any) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution as a program says them."""
    edges = edges_of(module)
    if module.padding_mode != "zeros" or edges == "same":  # then another step pads
        edges = (0, 0, 0, 0)
    return {
        "stride": tuple(module.stride),
        **padding_of(edges),
        "dilation": tuple(module.dilation),
        "groups": module.groups,
    }


def padding_of(edges: Edges) -> dict[str, tuple[int, int]]:
    """Attributes of a convolution that pads so on the left, right, top and bottom."""
    left, right, top, bottom = edges
    return {"padding": (top, left), "more_padding": (bottom - top, right - left)}
