# SPDX-License-Identifier: Apache-2.0
"""Functional calls: F.linear and F.conv2d with a quantized layer's weight are calls of the layer.

Attention often writes `F.linear(x, self.qkv.weight, bias)`, with the layer's bias or one that it
computes. The module whose forward does is given a forward that sends such calls to the layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ternary_ops.nn.conv import TernaryConv2d
from ternary_ops.nn.ternary import TernaryLayer

SENT: WeakSet[TernaryLayer] = WeakSet()  # layers that such a call has reached, in traces too
_LINEAR = {"input": None, "weight": None, "bias": None}
_CONV = {**_LINEAR, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_FUNCTIONS: dict[Callable[..., Any], dict[str, Any]] = {F.linear: _LINEAR, F.conv2d: _CONV}


def send_calls_(module: nn.Module, layers: Sequence[TernaryLayer]) -> None:
    """Make functional calls in the forward of `module` calls of these layers, in place; those of
    layers that it has already stay as they are.
    """
    former = vars(module).get("forward")
    kept = former.layers if isinstance(former, SendsCalls) else ()
    new = [layer for layer in layers if layer not in kept]
    if new:
        module.forward = SendsCalls(module, new)
    for layer in layers:
        layer.by_function = True


class SendsCalls:
    """Forward of a module, in which functions that are given a weight of `layers` call the layer.

    An object and no closure, so that copies and pickles of the module hold their own layers.
    """

    def __init__(self, module: nn.Module, layers: Sequence[TernaryLayer]) -> None:
        self.module, self.layers = module, tuple(layers)
        self.former = vars(module).get("forward")

    @property
    def __signature__(self) -> inspect.Signature:
        forward: Any = type(self.module).forward
        return inspect.signature(self.former or MethodType(forward, self.module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward returns."""
        with _Sending(self.layers):
            if self.former is not None:
                return self.former(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)


class _Sending(TorchFunctionMode):
    """While it is on, calls with a weight of `layers` are calls of the layer."""

    def __init__(self, layers: Sequence[TernaryLayer]) -> None:
        super().__init__()
        self.layers = layers

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func is F.conv2d:
            given = arguments(func, args, kwargs)
            for layer in self.layers:
                if given["weight"] is layer.weight and computes(layer, given):
                    if not torch.compiler.is_compiling():
                        SENT.add(layer)
                    y = layer(given["input"])
                    return _with_bias(layer, y, given["bias"])
        return func(*args, **kwargs)


def arguments(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a call of F.linear or F.conv2d by their names, with defaults."""
    defaults = _FUNCTIONS[func]
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


def computes(layer: TernaryLayer, given: Mapping[str, Any]) -> bool:
    """True where the arguments of a function besides its tensors are those of the layer."""
    if not isinstance(layer, TernaryConv2d):
        return "stride" not in given
    if "stride" not in given or layer.padding_mode != "zeros":
        return False
    sizes = [_pair(given[name]) for name in ("stride", "padding", "dilation")]
    same = sizes == [_pair(layer.stride), layer._even_padding(), _pair(layer.dilation)]
    return same and given["groups"] == layer.groups


def _pair(value: Any) -> Any:
    """An integer for rows and columns as two, and a list of two as a tuple."""
    if isinstance(value, int):
        return value, value
    found = tuple(value)
    return found * 2 if len(found) == 1 else found


def _with_bias(layer: TernaryLayer, y: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's output y with another bias in the place of its own."""
    if bias is layer.bias:
        return y
    if bias is None:
        more = -own if (own := layer.bias) is not None else None
    else:
        more = bias if layer.bias is None else bias - layer.bias
    return y if more is None else y + layer._per_output(more)
