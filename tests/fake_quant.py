# SPDX-License-Identifier: Apache-2.0
"""A program as a fake-quantized PyTorch network: F.conv2d and friends on integer-valued tensors.

Independent of the NumPy reference: only PyTorch's operators, float64 where sums could pass 2**24.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops.engine.ir import Graph, Node, Params


def run(graph: Graph, x: np.ndarray[Any, Any]) -> list[Tensor]:
    """Every node's value; quantized ones as integers in float32."""
    values: list[Tensor] = []
    for node in graph.nodes:
        if node.op == "input":
            values.append(torch.from_numpy(x.copy()))
        else:
            operands = [(values[j], graph.values[j].y) for j in node.inputs]
            values.append(_node(graph, node, operands))
    return values


def _node(graph: Graph, node: Node, operands: list[tuple[Tensor, Params | None]]) -> Tensor:
    (x, y), at = operands[0], node.attrs
    if node.op == "quantize":
        return _finish(x, (None, None), at["y"])
    if node.op == "dequantize":
        return _real(x, y)
    if node.op == "flatten":
        return torch.flatten(x, 1)
    if node.op == "max_pool2d":
        return F.max_pool2d(
            x, at["kernel"], at["stride"], at["padding"], at["dilation"], at["ceil"]
        )
    if node.op in ("add", "clamp"):
        total = _real(x, y)
        for other in operands[1:]:
            total = total + _real(*other)
        return _finish(total, at["clamp"], at["y"])
    if node.op in ("conv2d", "linear"):
        return _layer(graph, node, operands)
    return _mean(node, x, y)


def _layer(graph: Graph, node: Node, operands: list[tuple[Tensor, Params | None]]) -> Tensor:
    (x, y), at, w = operands[0], node.attrs, graph.weight(node)
    filters = torch.from_numpy(w.array.astype(np.float64)).permute(0, 3, 1, 2)
    steps = x.double() - (0 if y is None else y[1])
    if node.op == "conv2d":
        acc = F.conv2d(
            steps, filters, None, at["stride"], at["padding"], at["dilation"], at["groups"]
        )
    else:
        acc = F.linear(steps, filters.flatten(1))
    broadcast = (-1, *[1] * (acc.dim() - 2))
    out = acc.float()
    if w.scale is not None:
        scale = torch.from_numpy(w.scale.copy()) * (1.0 if y is None else y[0])
        out = out * scale.reshape(broadcast)
    if w.bias is not None:
        out = out + torch.from_numpy(w.bias.copy()).reshape(broadcast)
    for other in operands[1:]:
        out = out + _real(*other)
    return _finish(out, at["clamp"], at["y"])


def _mean(node: Node, x: Tensor, y: Params | None) -> Tensor:
    """Sums come from PyTorch's own mean, exact in float64 once multiplied by its own count."""
    at = node.attrs

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
