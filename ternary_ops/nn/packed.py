# SPDX-License-Identifier: Apache-2.0
"""Inference layers: packed integer weights, float in, float out, native kernels between."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ternary_ops import ops
from ternary_ops._native import core
from ternary_ops.errors import BadConfig, UnsupportedDevice, UnsupportedShape, need
from ternary_ops.layout import codes as layout
from ternary_ops.nn._integers import check_digest, digest, versions
from ternary_ops.nn.conv import TernaryConv2d
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.nn.geometry import ConvGeometry, Padding, geometry_of
from ternary_ops.nn.linear import TernaryLinear
from ternary_ops.nn.ternary import result_dtype
from ternary_ops.ops._decode import decode_weight

_DTYPES = {"ternary": torch.uint8, "int8": torch.int8}


class PackedLayer(nn.Module):
    """Base class of the packed layers.

    codes             the operators' layout: uint8 of 2-bit codes or int8, see ternary_ops.ops
    scale, bias       float32 [O]; bias may be None
    input_scale       float32 0-d, NaN: the input stays float (weight-only)
    input_zero_point  uint8 0-d
    output_range      float32 [2], NaN where not set: for compile, see TernaryLayer
    packed            uint8, not in the state dict: made from codes, again after each load
    cost              that of the trainable layer, kept in files; not part of the state

    These keep their dtypes under .half() and the like. No gradient reaches a quantized input: to
    train, keep the trainable layer. After writing into a buffer by hand, call refresh(). Codes and
    zero points changed in any other way, such as by averaging networks, are refused.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero_point: Tensor
    output_range: Tensor
    packed: Tensor | None
    cost: EngineCost | None = None
    kind: str
    _made_of: tuple[tuple[int, int], ...] = ()
    _digest: bytes | None = None

    def _allocate(self, shape: tuple[int, ...], bias: bool, weights: str, device: Any) -> None:
        """Register buffers for a weight of `shape`, [O, R, S, I] or [N, K], all codes 0."""
        if weights not in _DTYPES:
            raise BadConfig(need('weights "ternary" or "int8"', repr(weights), "Pick one."))
        self.weights, self._channels = weights, shape[-1]
        stored = layout.quads(shape[-1]) * (1 if weights == "ternary" else 4)
        codes = torch.zeros(*shape[:-1], stored, dtype=_DTYPES[weights], device=device)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", torch.ones(shape[0], device=device))
        self.register_buffer("bias", torch.zeros(shape[0], device=device) if bias else None)
        self.register_buffer("input_scale", torch.tensor(math.nan, device=device))
        zero_point = torch.tensor(0, dtype=torch.uint8, device=device)
        self.register_buffer("input_zero_point", zero_point)
        self.register_buffer("output_range", torch.full((2,), math.nan, device=device))
        self.register_buffer("packed", None, persistent=False)
        self.refresh()

    def refresh(self) -> None:
        """Derive `packed`, `kind` and the input's numbers from the other buffers.

        Raises BadWeights for an invalid code.
        """
        self._derive()
        self._digest, self._made_of = digest(self.codes, self.input_zero_point), self._sources()

    def _derive(self) -> None:
        self.packed, self.kind, self._input = None, "dense", None
        self._packed_for = self.codes.device.type
        if self.codes.is_meta:
            return
        scale = float(self.input_scale)
        if not math.isnan(scale):
            self._input = (scale, int(self.input_zero_point))
        if self._packed_for != "cpu":
            # What the operator would raise, it raises when it is called.
            if self._packed_for == "cuda":
                with contextlib.suppress(UnsupportedDevice):
                    self.packed = self._prepack()
            return
        occupied = self.codes != 0  # a byte of codes is a quad
        if self.weights == "int8":
            occupied = occupied.reshape(*occupied.shape[:-1], -1, 4).any(-1)
        if self._prefers_sparse(float(occupied.float().mean()) if occupied.numel() else 1.0):
            self.kind = "sparse"
        self.packed = self._prepack()

    def _sources(self) -> tuple[tuple[int, int], ...]:
        return versions(self.codes, self.input_scale, self.input_zero_point, self.packed)

    def _renew(self) -> None:
        """Derive anew where a buffer was written into. Raises BadWeights for other integers."""
        if not torch.compiler.is_compiling() and self._made_of != self._sources():
            own = self.codes, self.input_zero_point
            check_digest(type(self).__name__, "codes and zero point", self._digest, *own)
            self.refresh()

    def _prepack(self) -> Tensor:
        groups, float_x = self._groups(), self._input is None
        return ops.prepack(self.codes, self.kind, self._in_channels(), groups, float_x)

    def _fill(self, layer: TernaryLinear | TernaryConv2d) -> None:
        """Take over a trainable layer's codes, scale, bias and input range."""
        weight, scale = layer.integer_weight()
        integers = weight.cpu().numpy()
        if integers.ndim == 4:
            integers = layout.channels_last(integers)
        stored = (
            layout.pack_codes(integers) if self.weights == "ternary" else layout.pad_int8(integers)
        )
        self.codes.copy_(torch.from_numpy(stored))
        self.scale.copy_(scale)
        if self.bias is not None and layer.bias is not None:
            self.bias.copy_(layer.bias.detach())
        params = layer.input_params()
        if params is not None:
            self.input_scale.fill_(float(params[0]))
            self.input_zero_point.fill_(params[1])
        self.output_range.copy_(layer.output_range)
        self.refresh()
        self.to(layer.weight.device).train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the trainable layer computes; shapes and dtypes of the torch.nn twin."""
        if not x.is_floating_point():
            do = "Convert it first."
            raise UnsupportedShape(need(f"a float input of {type(self).__name__}", x.dtype, do))
        self._renew()
        dtype = result_dtype(x)
        x = self._pad(x)
        if self._input is None:
            y = self._operator(x.float() if x.dtype == torch.float64 else x)
        else:
            y = self._quantized(x.float(), *self._input)
        return y.to(dtype)

    def _quantized(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        """Quantize float32 x and run the operator on it."""
        q = quantize(x, scale, zero_point)
        return self._operator(q, x_scale=scale, x_zero_point=zero_point)

    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Codes int8 in the torch.nn twin's weight layout, and scale float32 [O]."""
        return decode_weight(self.codes, self._channels).contiguous(), self.scale.clone()

    def ternary(self) -> tuple[Tensor, Tensor]:
        """Codes in {-1, 0, 1} and scale, as integer_weight; BadConfig for int8 weights."""
        if self.weights != "ternary":
            do = "integer_weight() serves both."
            raise BadConfig(need("ternary weights for ternary()", self.weights, do))
        return self.integer_weight()

    def _fill_float(self, twin: nn.Linear | nn.Conv2d) -> None:
        """Give a torch.nn layer made on the meta device this layer's weights."""
        codes, scale = self.integer_weight()
        weight = codes * scale.reshape(-1, *[1] * (codes.dim() - 1))
        twin.weight = nn.Parameter(weight)
        bias = None if self.bias is None else nn.Parameter(self.bias.clone())
        twin.register_parameter("bias", bias)
        twin.train(self.training)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        kept = {name: b for name, b in self.named_buffers() if b.dtype == torch.float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != torch.float32:  # the kernels read float32: undo .half(), keep .to()
                setattr(self, name, before.to(after.device))
        device = self.codes.device.type
        if "meta" in (device, self._packed_for):  # no codes yet, or no more
            self.packed, self._packed_for = None, device
        elif device != self._packed_for:
            self.refresh()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        codes = state_dict.get(prefix + "codes")
        if codes is not None:  # all is checked before anything is copied
            self._check_codes(codes)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.refresh()

    def _check_codes(self, codes: Tensor) -> None:
        want = (self.codes.dtype, list(self.codes.shape))
        if (codes.dtype, list(codes.shape)) != want:
            raise UnsupportedShape(
                need(
                    f"codes {want[0]} {want[1]} for {type(self).__name__}",
                    f"{codes.dtype} {list(codes.shape)}",
                    "Make the layer with the shape and `weights` that the state was saved with.",
                )
            )
        if codes.dtype == torch.uint8 and not codes.is_meta:
            layout.validate(codes.cpu().numpy(), self._channels)

    @abstractmethod
    def _operator(self, x: Tensor, **quantization: Any) -> Tensor:
        """Run the operator on uint8 or float x."""

    def _pad(self, x: Tensor) -> Tensor:
        """Padding that the kernels cannot do; none by default."""
        return x

    @abstractmethod
    def _prefers_sparse(self, occupied: float) -> bool:
        """True if skipping empty quads can pay at this fraction of nonzero ones."""

    @abstractmethod
    def _in_channels(self) -> int:
        """Input channels of all groups."""

    def _groups(self) -> int:
        return 1

    def extra_repr(self) -> str:
        """Storage and execution of the layer, for repr."""
        codes, _ = self.integer_weight()
        known = codes.numel() > 0 and not codes.is_meta
        zeros = f", zeros={1 - float(codes.ne(0).float().mean()):.1%}" if known else ""
        activations = "float" if self._input is None else "uint8"
        return f"weights={self.weights}, kind={self.kind}{zeros}, activations={activations}"


class PackedLinear(PackedLayer):
    """torch.nn.Linear with packed weights; x [..., K] of any float dtype -> [..., N].

    The arguments of torch.nn.Linear, then `weights`: "ternary" or "int8". A new layer holds zeros:
    fill it with load_state_dict, or use from_layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        weights: str = "ternary",
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._allocate((out_features, in_features), bias, weights, device)

    @classmethod
    def from_layer(cls, layer: TernaryLinear) -> PackedLinear:
        """Pack a trainable layer as it is now; an unset input range gives a weight-only layer."""
        bias = layer.bias is not None
        packed = cls(layer.in_features, layer.out_features, bias, weights=layer.config.weights)
        packed._fill(layer)
        return packed

    def to_float(self) -> nn.Linear:
        """A torch.nn.Linear with this layer's weights; its input stays float."""
        twin = nn.Linear(self.in_features, self.out_features, device="meta")
        self._fill_float(twin)
        return twin

    def _operator(self, x: Tensor, **quantization: Any) -> Tensor:
        return ops.linear(x, self.codes, self.scale, self.bias, packed=self.packed, **quantization)

    def _quantized(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        return self._operator(x, x_scale=scale, x_zero_point=zero_point)  # quantizes floats itself

    def _prefers_sparse(self, occupied: float) -> bool:
        return bool(core().linear_sparse_pays(self.weights, occupied))

    def _in_channels(self) -> int:
        return self.in_features

    def extra_repr(self) -> str:
        """As torch.nn.Linear, then what is stored and how it runs."""
        bias = self.bias is not None
        twin = f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
        return f"{twin}, {super().extra_repr()}"


class PackedConv2d(ConvGeometry, PackedLayer):
    """torch.nn.Conv2d with packed weights; x [N, C, H, W] or [C, H, W] of any float dtype.

    The arguments of torch.nn.Conv2d, then `weights`: "ternary" or "int8", and `edges` of zeros, as
    `geometry.PaddedConv2d` has them. A new layer holds zeros: fill it with load_state_dict, or use
    from_layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        weights: str = "ternary",
        edges: Padding | None = None,
    ) -> None:
        super().__init__()
        self._set_geometry(
            edges,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
        )
        shape = (out_channels, *self.kernel_size, in_channels // groups)
        self._allocate(shape, bias, weights, device)

    @classmethod
    def from_layer(cls, layer: TernaryConv2d) -> PackedConv2d:
        """Pack a trainable layer as it is now; an unset input range gives a weight-only layer."""
        arguments = {**geometry_of(layer), "edges": layer.edges}
        packed = cls(**arguments, bias=layer.bias is not None, weights=layer.config.weights)
        packed._fill(layer)
        return packed

    def to_float(self) -> nn.Conv2d:
        """A torch.nn.Conv2d with this layer's weights; its input stays float."""
        twin = self._twin()
        self._fill_float(twin)
        return twin

    def _operator(self, x: Tensor, **quantization: Any) -> Tensor:
        run = ops.sparse_conv2d if self.kind == "sparse" else ops.conv2d
        return run(
            x,
            self.codes,
            self.scale,
            self.bias,
            self.stride,
            self._inner_padding,
            self.dilation,
            self.groups,
            packed=self.packed,
            **quantization,
        )

    def _prefers_sparse(self, occupied: float) -> bool:
        return bool(core().prefer_sparse(self.weights, occupied, *self.kernel_size))

    def _in_channels(self) -> int:
        return self.in_channels

    def _groups(self) -> int:
        return self.groups

    def extra_repr(self) -> str:
        """As torch.nn.Conv2d, then what is stored and how it runs."""
        twin: str = self._twin().extra_repr()  # type: ignore[no-untyped-call]
        return f"{twin}, {super().extra_repr()}"


def quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """float32 -> uint8, bit for bit as ops.reference.quantize."""
    inverse = float(np.float32(1) / np.float32(scale))
    steps = x.mul(inverse).round_().add_(zero_point).clamp_(0, 255)
    return steps.nan_to_num_(0.0).to(torch.uint8)
