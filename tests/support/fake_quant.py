# SPDX-License-Identifier: Apache-2.0
"""A program as a fake-quantized PyTorch network: F.conv2d and friends on integer-valued tensors.

Independent of the NumPy reference: only PyTorch's operators, float64 where sums could pass 2**24.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import ProgramCase, activations, program_cases
from torch import Tensor

from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.ops.attention import repeats_of
from ternary_ops.program.weight import Params

Operands = list[tuple[Tensor, "Params | None"]]


def run(graph: Graph, x: np.ndarray[Any, Any]) -> list[Tensor]:
    """Every node's value; quantized ones as integers in float32."""
    values: list[Tensor] = []
    for node in graph.nodes:
        if node.op == "input":
            values.append(torch.from_numpy(x.copy()))
        else:
            values.append(node_value(graph, node, values))
    return values


def node_value(graph: Graph, node: Node, values: Sequence[Tensor]) -> Tensor:
    """Value of one node, not the input, from those of the nodes before it."""
    operands = [(values[j], graph.values[j].y) for j in node.inputs]
    return _OPERATORS[node.op](graph, node, operands)


def _channel_axis(x: Tensor) -> int:
    return 2 if x.dim() == 3 else 1


FUNCTIONS = {name: function for name, (_, function) in activations.FUNCTIONS.items()}


def _quantize(graph: Graph, node: Node, operands: Operands) -> Tensor:
    x, at = operands[0][0], node.attrs
    return _eleven_bits(x, at["y"]) if at["fine"] else _finish(x, (None, None), at["y"])


def _max_pool(graph: Graph, node: Node, operands: Operands) -> Tensor:
    at = node.attrs
    window = at["kernel"], at["stride"], at["padding"], at["dilation"]
    return F.max_pool2d(operands[0][0], *window, at["ceil"])


def _add(graph: Graph, node: Node, operands: Operands) -> Tensor:
    total = _real(*operands[0])
    for other in operands[1:]:
        total = total + _real(*other)
    return _finish(total, node.attrs["clamp"], node.attrs["y"])


def _function(graph: Graph, node: Node, operands: Operands) -> Tensor:
    at = node.attrs
    out = FUNCTIONS[at["fn"]](_real(*operands[0]).double(), *at["params"]).float()
    return _finish(out, (None, None), at["y"])


def _mul(graph: Graph, node: Node, operands: Operands) -> Tensor:
    a, b = (_real(*operand) for operand in operands)
    return _finish(a * b, node.attrs["clamp"], node.attrs["y"])


def _concat(graph: Graph, node: Node, operands: Operands) -> Tensor:
    """Tokens are [N, L, C]."""
    parts, axis = [_real(*o) for o in operands], node.attrs["axis"]
    axis = 3 - axis if parts[0].dim() == 3 else axis
    return _finish(torch.cat(parts, axis), (None, None), node.attrs["y"])


def _slice(graph: Graph, node: Node, operands: Operands) -> Tensor:
    x, begin, end = operands[0][0], node.attrs["begin"], node.attrs["end"]
    return x.narrow(_channel_axis(x), begin, end - begin)


def _shuffle(graph: Graph, node: Node, operands: Operands) -> Tensor:
    """Whole pixels first, then rows by columns: PyTorch's own take one factor for both axes."""
    x, (r, s) = operands[0][0], node.attrs["factor"]
    n, c, h, w = x.shape
    if node.op == "pixel_unshuffle":
        columns = F.unfold(x, (r, s), stride=(r, s))
        return columns.reshape(n, c * r * s, h // r, w // s)
    down, right = node.attrs["crop"]
    y = F.fold(x.flatten(2), (h * r, w * s), (r, s), stride=(r, s))
    return y[:, :, : h * r - down, : w * s - right]


def _resize(graph: Graph, node: Node, operands: Operands) -> Tensor:
    (x, y), at = operands[0], node.attrs
    size = operands[1][0].shape[2:] if len(operands) == 2 else at["size"]
    nearest = at["mode"].startswith("nearest")
    steps = x - (0 if y is None else y[1])
    align = None if nearest else at["align"]
    out = F.interpolate(steps, size, at["zoom"], at["mode"], align)
    return out if y is None else (torch.round(out) + y[1]).clamp(0, 255)


def _layer_norm(graph: Graph, node: Node, operands: Operands) -> Tensor:
    x, w = operands[0][0].double(), graph.weight(node)
    weight, bias = (torch.from_numpy(v.ravel().astype(np.float64)) for v in (w.array, w.bias))
    axis = _channel_axis(x)
    rows = F.layer_norm(x.movedim(axis, -1), (len(weight),), weight, bias, node.attrs["eps"])
    return _finish(rows.movedim(-1, axis).float(), (None, None), node.attrs["y"])


def _softmax(graph: Graph, node: Node, operands: Operands) -> Tensor:
    x = operands[0][0].double()
    axis, groups = _channel_axis(x), node.attrs["groups"]
    return F.softmax(x.unflatten(axis, (groups, -1)), axis + 1).flatten(axis, axis + 1).float()


def _matmul(graph: Graph, node: Node, operands: Operands) -> Tensor:
    """Tokens outside are [N, L, C]."""
    at = node.attrs
    a, b = (x.double().unflatten(2, (at["groups"], -1)) for x, _ in operands)
    pattern = "nlgk,nmgk->nlgm" if at["transpose"] else "nlgm,nmgd->nlgd"
    return (at["scale"] * torch.einsum(pattern, a, b)).flatten(2).float()


def _attention(graph: Graph, node: Node, operands: Operands) -> Tensor:
    """Tokens outside are [N, L, C]. Of codes without what shares are rounded by."""
    heads, tokens, scale = (node.attrs[name] for name in ("heads", "tokens", "scale"))
    reals = [_real(*x).double() for x in operands]
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in reals[:3])
    bias = torch.zeros(1, dtype=torch.float64)
    for x, repeats in zip(reals[3:], repeats_of(graph.bound(node)), strict=True):
        groups = x.unflatten(2, (-1, tokens)).transpose(1, 2)
        bias = bias + groups[:, torch.arange(heads) // repeats % groups.shape[1]]
    made = ((scale * q @ k.transpose(2, 3) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
    return _finish(made.float(), (None, None), node.attrs["y"])


def _layer(graph: Graph, node: Node, operands: Operands) -> Tensor:
    (x, y), at, w = operands[0], node.attrs, graph.weight(node)
    filters = torch.from_numpy(w.array.astype(np.float64)).permute(0, 3, 1, 2)
    steps = x.double() - (0 if y is None else y[1])
    if graph.values[node.inputs[0]].fine:
        steps = steps.unflatten(1, (-1, 2, 4))
        codes, eighths = (steps[:, :, j].flatten(1, 2)[:, : filters.shape[1]] for j in (0, 1))
        steps = torch.cat([codes, eighths], 1)
        filters = torch.cat([filters, torch.round(filters / 8)], 1)
    if node.op == "conv2d":
        steps = F.pad(steps, (0, at["more_padding"][1], 0, at["more_padding"][0]))
        acc = F.conv2d(
            steps, filters, None, at["stride"], at["padding"], at["dilation"], at["groups"]
        )
    else:
        acc = F.linear(steps, filters.flatten(1))
    broadcast = (-1, *[1] * (acc.dim() - 2)) if node.op == "conv2d" else (-1,)
    out = acc.float()
    if w.scale is not None:
        scale = torch.from_numpy(w.scale.copy()) * (1.0 if y is None else y[0])
        out = out * scale.reshape(broadcast)
    if w.bias is not None:
        out = out + torch.from_numpy(w.bias.copy()).reshape(broadcast)
    others = operands[1:]
    if at.get("gate"):
        out = torch.sigmoid(out.double()).float() * _real(*others.pop(0))
    for other in others:
        out = out + _real(*other)
    if w.slope is not None:
        out = F.prelu(out, torch.from_numpy(w.slope.copy()))
    return _finish(out, at["clamp"], at["y"])


def _eleven_bits(x: Tensor, y: Params) -> Tensor:
    """Codes of four channels, then eighths of a step that these leave."""
    n, c, *image = x.shape
    v = F.pad(x * (1 / torch.tensor(y[0], dtype=torch.float32)), (0, 0, 0, 0, 0, -c % 4))
    fours = v.clamp(-1024, 1024).reshape(n, -1, 4, *image)
    eighths = torch.round(8 * (fours - torch.round(fours)))
    both = torch.cat([torch.round(fours), eighths], 2) + y[1]
    return both.clamp(0, 255).reshape(n, -1, *image)


def _mean(graph: Graph, node: Node, operands: Operands) -> Tensor:
    """Sums come from PyTorch's own mean, exact in float64 once multiplied by its own count."""
    (x, y), at = operands[0], node.attrs

    def pool(t: Tensor) -> Tensor:
        if node.op == "adaptive_avg_pool2d":
            return F.adaptive_avg_pool2d(t, at["size"])
        rest = at["ceil"], at["include_pad"], at["divisor"]
        return F.avg_pool2d(t, at["kernel"], at["stride"], at["padding"], *rest)

    if y is None:
        return _finish(pool(x.double()).float(), (None, None), at["y"])
    count = _counts(node, x)
    acc = torch.round(pool(x.double() - y[1]) * count)
    scale = torch.tensor(y[0], dtype=torch.float32) / count.float()
    return _finish(acc.float() * scale, (None, None), at["y"])


def _counts(node: Node, x: Tensor) -> Tensor:
    """What PyTorch divides by, found by averaging a single 1 at every place of the image."""
    at = node.attrs
    if node.op == "avg_pool2d" and at["divisor"] is not None:
        return torch.tensor(float(at["divisor"]), dtype=torch.float64)
    h, w = x.shape[2:]
    ones = torch.eye(h * w, dtype=torch.float64).reshape(h * w, 1, h, w)
    if node.op == "adaptive_avg_pool2d":
        shares = F.adaptive_avg_pool2d(ones, at["size"])
    else:
        rest = at["ceil"], at["include_pad"]
        shares = F.avg_pool2d(ones, at["kernel"], at["stride"], at["padding"], *rest)
    return torch.round(1 / shares.amax(dim=0))[0]


def _real(x: Tensor, y: Params | None) -> Tensor:
    return x if y is None else (x - y[1]) * torch.tensor(y[0], dtype=torch.float32)


def _finish(out: Tensor, clamp: tuple[float | None, float | None], y: Params | None) -> Tensor:
    lo, hi = clamp
    if lo is not None or hi is not None:
        out = torch.clamp(out, lo, hi)
    if y is None:
        return out
    inverse = 1 / torch.tensor(y[0], dtype=torch.float32)
    return torch.clamp(torch.round(out * inverse) + y[1], 0, 255)


_OPERATORS: dict[str, Callable[[Graph, Node, Operands], Tensor]] = {
    "activation": _function,
    "adaptive_avg_pool2d": _mean,
    "add": _add,
    "attention": _attention,
    "avg_pool2d": _mean,
    "channel_shuffle": lambda g, node, o: F.channel_shuffle(o[0][0], node.attrs["groups"]),
    "clamp": _add,
    "concat": _concat,
    "conv2d": _layer,
    "dequantize": lambda g, node, o: _real(*o[0]),
    "flatten": lambda g, node, o: torch.flatten(o[0][0], 1),
    "layer_norm": _layer_norm,
    "linear": _layer,
    "matmul": _matmul,
    "max_pool2d": _max_pool,
    "mul": _mul,
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _shuffle,
    "quantize": _quantize,
    "resize": _resize,
    "slice": _slice,
    "softmax": _softmax,
    "unflatten": lambda g, node, o: o[0][0][:, :, None, None],
}


def _of_case(case: ProgramCase) -> Callable[[Graph, Node, Operands], Tensor]:
    """What keeps scale and zero point is given the numbers that codes stand for."""

    def run(graph: Graph, node: Node, operands: Operands) -> Tensor:
        weight = graph.weight(node) if "w" in node.attrs else None
        if node.operator.keeps_params:
            x, y = operands[0]
            return _finish(case.by_torch(node.attrs, weight, [_real(x, y)]), (None, None), y)
        value: Tensor = case.by_torch(node.attrs, weight, [x for x, _ in operands])
        return value

    return run


_OPERATORS |= {op: _of_case(case) for op, case in program_cases().items()}
