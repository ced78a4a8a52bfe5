# SPDX-License-Identifier: Apache-2.0
"""Layers as plain data, and back: a class of torch.nn or ternary_ops.nn with what makes one.

A module of a class of the user's own that computes by its parent's forward becomes that parent.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import ternary_ops.nn as tnn
from ternary_ops.errors import FormatError, TernaryOpsError, UnsupportedModel, need
from ternary_ops.graph.nodes import layer_class, operator_of_class
from ternary_ops.io.safetensors import DAMAGED
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.geometry import PaddedConv2d, edges_of

# Arguments that say nothing about a layer that is there.
_LEFT_OUT = ("self", "args", "kwargs", "options", "device", "dtype", "process_group", "init")
_MORE = (
    nn.InstanceNorm2d, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
)  # fmt: skip
_OWN = {kind.__name__: kind for kind in (tnn.TernaryConv2d, tnn.TernaryLinear, PaddedConv2d)}


def _is_known(kind: type[nn.Module]) -> bool:
    """True for layers that a file may name."""
    if kind in _OWN.values():
        return True
    named = getattr(nn, kind.__name__, None) is kind
    return named and (kind in _MORE or operator_of_class(kind) is not None)


def describe(path: str, module: nn.Module) -> dict[str, Any]:
    """The class of a layer and the arguments that make one like it. Raises UnsupportedModel, naming
    the layer, for classes that a file cannot name.
    """
    kind = layer_class(module)
    if kind is None or not _is_known(kind):
        what = "layers of torch.nn or ternary_ops.nn that compile takes"
        got = f"{path}, a {type(module).__name__}"
        do = "Save its state_dict, or write it with layers of torch.nn."
        raise UnsupportedModel(need(what, got, do))
    made: dict[str, Any] = {}
    initializer: Any = nn.Conv2d if kind is PaddedConv2d else kind
    for name in inspect.signature(initializer.__init__).parameters:
        if name == "bias":
            made[name] = getattr(module, "bias", None) is not None
        elif name not in _LEFT_OUT and hasattr(module, name):
            made[name] = _plain(path, name, getattr(module, name))
    if isinstance(module, (tnn.TernaryConv2d, PaddedConv2d)):
        made["edges"] = list(edges_of(module))
    return {"class": kind.__name__, "arguments": made}


def _plain(path: str, name: str, value: Any) -> Any:
    if isinstance(value, TernaryConfig):
        return value.to_dict()
    if isinstance(value, (tuple, torch.Size)):
        return [_plain(path, name, v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    do = "Set it to a number, a string or a tuple of them."
    raise UnsupportedModel(need(f"a plain value of {path}.{name}", type(value).__name__, do))


def make(path: str, data: Any) -> nn.Module:
    """The layer of data that `describe` made, on the meta device: with shapes, without numbers.

    Raises FormatError for a class that files cannot name, and arguments that make none.
    """
    name, given = (data.get(k) for k in ("class", "arguments")) if type(data) is dict else ("", 0)
    kind: Any = (_OWN.get(name) or getattr(nn, name, None)) if isinstance(name, str) else None
    known = isinstance(kind, type) and issubclass(kind, nn.Module) and _is_known(kind)
    if not known or not isinstance(given, Mapping):
        raise FormatError(need(f"a known layer {path!r}", f"{data!r:.80}", DAMAGED))
    arguments: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in given.items()
    }
    edges = arguments.pop("edges", None) if kind is tnn.TernaryConv2d else None
    try:
        if "config" in arguments:
            arguments["config"] = TernaryConfig.from_dict(arguments["config"])
        if kind is PaddedConv2d or "device" in inspect.signature(kind.__init__).parameters:
            arguments["device"] = "meta"
        module: nn.Module = kind(**arguments)
    except (TypeError, ValueError, RuntimeError, TernaryOpsError) as error:
        got = f"{name}: {type(error).__name__}: {error}"
        raise FormatError(need(f"arguments of layer {path!r}", f"{got:.120}", DAMAGED)) from None
    if edges is not None:
        if len(edges) != 4 or any(type(edge) is not int for edge in edges):
            raise FormatError(need(f"four edges of layer {path!r}", f"{edges!r:.80}", DAMAGED))
        module.edges = edges
    return module
