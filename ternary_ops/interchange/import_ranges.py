# SPDX-License-Identifier: Apache-2.0
"""From QuantizeLinear and DequantizeLinear to tops.nn layers of the same codes and ranges."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

import ternary_ops.nn as tnn
from ternary_ops.graph.channel_ops import keeps_range
from ternary_ops.graph.nodes import fused_chain, is_layer, module_of
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.quantize.calibration import read_as_uint8
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.plans import plan

_log = logging.getLogger(__name__)

# lo and hi of a uint8 value.
Range = tuple[float, float]


@dataclass(frozen=True)
class Codes:
    """A weight of integers: values times scale, one for all or one for each along `axis`."""

    values: NDArray[Any]
    scale: NDArray[Any]
    axis: int


def settle_ranges(
    model: fx.GraphModule,
    ranges: dict[fx.Node, Range],
    quantized: dict[str, Codes],
) -> None:
    """Make layers of 8-bit weights tops.nn layers, in place, and give them the ranges found.

    quantized: by name of the layer. A layer whose input has no range, whose scales do not belong to
    output channels, or whose codes do not lie in -127..127 keeps its float weight, with a warning.
    """
    inputs = {
        str(node.target): found
        for node in model.graph.nodes
        if is_layer(node) and (found := _range_before(node.args[0], ranges)) is not None
    }
    chosen = {}
    for name, codes in quantized.items():
        reason = _why_not(codes, name in inputs)
        if reason is None:
            chosen[name] = codes
        else:
            _log.warning("%s computes with float weights: %s", name, reason)
    if not chosen:
        return
    _replace(model, chosen)
    modules = dict(model.named_modules())
    for name, codes in chosen.items():
        layer = modules[name]
        if isinstance(layer, tnn.TernaryLayer):
            _fix(layer, codes, inputs[name])
    _drop_rounding(model, ranges)
    for node in model.graph.nodes:
        layer = module_of(node)
        if isinstance(layer, tnn.TernaryLayer):
            end = fused_chain(node).end
            found = _range_behind(end, ranges)
            if found is not None and not read_as_uint8(end):
                layer.output_range.copy_(torch.tensor(found))


def _why_not(codes: Codes, has_range: bool) -> str | None:
    """Why a layer cannot have these 8-bit weights; None where it can."""
    if np.abs(codes.values).max(initial=0) > 127:
        return "its 8-bit weights lie up to 255 from their zero point, and -127..127 is stored"
    if codes.axis != 0:
        return f"its scales belong to axis {codes.axis} of its weight, not to the outputs"
    return None if has_range else "its input is not quantized"


def _drop_rounding(model: fx.GraphModule, ranges: dict[fx.Node, Range]) -> None:
    """Leave rounding to the layers where they alone read a value: their input range is the same."""
    for node in list(ranges):
        x = node.args[0]
        rounds = node.target is torch.fake_quantize_per_tensor_affine
        if not rounds or not isinstance(x, fx.Node) or x in ranges:
            continue
        if len(x.users) == 1 and _only_codes(node):
            node.replace_all_uses_with(x)
            model.graph.erase_node(node)
            ranges[x] = ranges.pop(node)
    model.recompile()


def _only_codes(node: fx.Node) -> bool:
    """True if only layers with 8-bit inputs read a value, directly or behind pools and reshapes."""
    return bool(node.users) and all(
        isinstance(module_of(user), tnn.TernaryLayer) or (keeps_range(user) and _only_codes(user))
        for user in node.users
    )


def _replace(model: nn.Module, chosen: dict[str, Codes]) -> None:
    kinds = {
        name: TernaryConfig("ternary" if np.abs(codes.values).max(initial=0) <= 1 else "int8")
        for name, codes in chosen.items()
    }
    left = [
        name
        for name, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and name not in chosen
    ]
    rules = {_literal(name): config for name, config in kinds.items()}
    quantize_(model, plan(model, TernaryConfig("int8"), rules=rules, skip=[*map(_literal, left)]))


def _literal(name: str) -> str:
    """A glob that matches this name alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@torch.no_grad()
def _fix(layer: tnn.TernaryLayer, codes: Codes, bounds: Range) -> None:
    numbers = torch.from_numpy(codes.values.astype(np.int8)).reshape(layer.weight.shape)
    scales = np.broadcast_to(codes.scale, (len(codes.values),)).astype(np.float32)
    per_filter = torch.from_numpy(scales)
    real = numbers.float() * per_filter.view(-1, *[1] * (numbers.ndim - 1))
    layer.weight.copy_(real)
    layer.mask.copy_(numbers != 0)
    layer.phase = "frozen"
    layer.codes.copy_(numbers)
    layer.input_range.copy_(torch.tensor(bounds))


def _range_before(node: Any, ranges: dict[fx.Node, Range]) -> Range | None:
    """Of a value, or of what it was before pools and reshapes, which keep it."""
    while isinstance(node, fx.Node):
        if node in ranges:
            return ranges[node]
        if not keeps_range(node):
            return None
        node = node.args[0]
    return None


def _range_behind(node: fx.Node, ranges: dict[fx.Node, Range]) -> Range | None:
    """Of a value, or the widest of those to which its readers round it, or what pools and reshapes
    make of it; None where something reads it as it is.
    """
    if node in ranges:
        return ranges[node]
    found = [
        ranges.get(user) or (_range_behind(user, ranges) if keeps_range(user) else None)
        for user in node.users
    ]
    known = [bounds for bounds in found if bounds is not None]
    if not known or len(known) < len(found):
        return None
    return min(lo for lo, _ in known), max(hi for _, hi in known)
