# SPDX-License-Identifier: Apache-2.0
"""A random network of floats as somebody's PyTorch module, with BatchNorm here and there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import program_cases
from engine_access import Graph, Node
from fake_quant import FUNCTIONS
from torch import Tensor, nn


def _conv(graph: Graph, node: Node) -> nn.Module:
    w, at = graph.weight(node), node.attrs
    o, r, s, i = w.shape
    made = nn.Conv2d(
        i * at["groups"],
        o,
        (r, s),
        at["stride"],
        at["padding"],
        at["dilation"],
        at["groups"],
        bias=w.bias is not None,
    )
    filled = _filled(made, w, (0, 3, 1, 2))
    down, right = at["more_padding"]
    return nn.Sequential(nn.ZeroPad2d((0, right, 0, down)), filled) if down + right else filled


def _linear(graph: Graph, node: Node) -> nn.Linear:
    w = graph.weight(node)
    o, i = w.shape[0], w.shape[3]
    made = nn.Linear(i, o, bias=w.bias is not None)
    return _filled(made, w, None)


def _filled(layer: Any, w: Any, order: tuple[int, ...] | None) -> Any:
    values = np.asarray(w.array, np.float32)
    if w.scale is not None:
        values = values * w.scale[:, None, None, None]
    values = values[:, 0, 0] if order is None else values.transpose(order)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.ascontiguousarray(values)))
        if w.bias is not None:
            layer.bias.copy_(torch.from_numpy(w.bias.copy()))
    return layer


class Module(nn.Module):
    """Runs the nodes of a float graph with PyTorch's layers and functions."""

    def __init__(self, graph: Graph, seed: int, norms: float) -> None:
        """norms: share of convolutions with a BatchNorm behind."""
        super().__init__()
        rng = np.random.default_rng((seed, 17))
        self.graph = graph
        self.layers = nn.ModuleDict()
        self.called: dict[int, str] = {}
        shared: dict[Any, str] = {}
        for i, node in enumerate(graph.nodes):
            if "w" not in node.attrs and node.op not in program_cases():
                continue
            at = {k: v for k, v in node.attrs.items() if k not in ("clamp", "gate", "y")}
            name = shared.setdefault((node.op, *at.items()), str(i))
            self.called[i] = name
            if name == str(i):
                self._add(name, graph, node, rng, norms)

    def _add(
        self, name: str, graph: Graph, node: Node, rng: np.random.Generator, norms: float
    ) -> None:
        if node.op in program_cases():
            weight = graph.weight(node) if "w" in node.attrs else None
            self.layers[name] = program_cases()[node.op].module(node.attrs, weight)
            return
        w = graph.weight(node)
        if node.op == "linear":
            self.layers[name] = _linear(graph, node)
            return
        if node.op == "layer_norm":
            norm = nn.LayerNorm(w.shape[0], eps=node.attrs["eps"])
            with torch.no_grad():
                norm.weight.copy_(torch.from_numpy(w.array.ravel().copy()))
                if w.bias is not None:
                    norm.bias.copy_(torch.from_numpy(w.bias.copy()))
            self.layers[name] = norm
            return
        parts: list[nn.Module] = [_conv(graph, node)]
        if rng.random() < norms:
            parts.append(_batch_norm(w.shape[0], rng))
        self.layers[name] = nn.Sequential(*parts)
        if w.slope is not None:
            prelu = nn.PReLU(w.slope.size)
            with torch.no_grad():
                prelu.weight.copy_(torch.from_numpy(w.slope.copy()))
            self.layers[f"{name}_slope"] = prelu

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for i, node in enumerate(self.graph.nodes[1:], 1):
            values.append(self._node(i, node, [values[j] for j in node.inputs]))
        return values[-1]

    def _node(self, i: int, node: Node, x: list[Tensor]) -> Tensor:
        at = node.attrs
        if i in self.called:
            return self._layer(i, node, x)
        if node.op == "max_pool2d":
            window = at["kernel"], at["stride"], at["padding"], at["dilation"]
            return F.max_pool2d(x[0], *window, ceil_mode=at["ceil"])
        if node.op == "avg_pool2d":
            sizes = at["kernel"], at["stride"], at["padding"]
            return F.avg_pool2d(x[0], *sizes, at["ceil"], at["include_pad"], at["divisor"])
        if node.op == "resize":
            align = None if at["mode"].startswith("nearest") else at["align"]
            size = x[1].shape[2:] if len(x) == 2 else at["size"]
            return F.interpolate(x[0], size, at["zoom"], at["mode"], align)
        return _PLAIN[node.op](at, *x)

    def _layer(self, i: int, node: Node, x: list[Tensor]) -> Tensor:
        name = self.called[i]
        y = self.layers[name](x[0])
        others = x[1:]
        if node.attrs.get("gate"):
            y = torch.sigmoid(y) * others.pop(0)
        for other in others:
            y = y + other
        if f"{name}_slope" in self.layers:
            y = self.layers[f"{name}_slope"](y)
        return _bounded(y, node.attrs.get("clamp", (None, None)))


def _batch_norm(channels: int, rng: np.random.Generator) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, channels)))
        norm.bias.copy_(torch.from_numpy(rng.normal(size=channels) * 0.3))
        norm.running_mean.copy_(torch.from_numpy(rng.normal(size=channels) * 0.3))  # type: ignore[union-attr]
        norm.running_var.copy_(torch.from_numpy(rng.uniform(0.5, 2, channels)))  # type: ignore[union-attr]
    return norm


def _bounded(y: Tensor, clamp: tuple[float | None, float | None]) -> Tensor:
    if clamp == (None, None):
        return y
    return F.relu(y) if clamp == (0.0, None) else torch.clamp(y, *clamp)


_PLAIN: dict[str, Any] = {
    "add": lambda at, a, b: _bounded(a + b, at["clamp"]),
    "mul": lambda at, a, b: _bounded(a * b, at["clamp"]),
    "clamp": lambda at, x: _bounded(x, at["clamp"]),
    "activation": lambda at, x: FUNCTIONS[at["fn"]](x, *at["params"]),
    "adaptive_avg_pool2d": lambda at, x: F.adaptive_avg_pool2d(x, at["size"]),
    "flatten": lambda at, x: torch.flatten(x, 1),
    "unflatten": lambda at, x: x[:, :, None, None],
    "concat": lambda at, *parts: torch.cat(parts, 1),
    "slice": lambda at, x: x[:, at["begin"] : at["end"]],
    "pixel_shuffle": lambda at, x: F.pixel_shuffle(x, at["factor"][0]),
    "pixel_unshuffle": lambda at, x: F.pixel_unshuffle(x, at["factor"][0]),
    "channel_shuffle": lambda at, x: F.channel_shuffle(x, at["groups"]),
    "softmax": lambda at, x: torch.softmax(x, 1),
}


_WITHOUT_FORM = ("constant", "reduce", "matmul", "attention", "rearrange", "crop", "pad")


def has_module_form(graph: Graph) -> bool:
    """Floats alone, pixels moved as PyTorch's functions do, and LayerNorm of rows alone."""
    for node, value in zip(graph.nodes, graph.values, strict=True):
        if node.op in _WITHOUT_FORM or node.attrs.get("axis", 1) != 1:
            return False
        if node.op == "softmax" and node.attrs["groups"] > 1:
            return False
        factor = node.attrs.get("factor", (1, 1))
        oblong = factor[0] != factor[1] or any(node.attrs.get("crop", ()))
        if value.y is not None or oblong or (node.op == "layer_norm" and value.rank == 4):
            return False
    return True
