# SPDX-License-Identifier: Apache-2.0
"""The channel groups of a traced network: what each operator ties.

Values are named by their nodes, layers by their module's path, parameters that the code reads
itself by their attribute's. Channels lie along one axis of a value, axis 1 of an image and the last
of tokens, or along several, as in [N, heads, L, D]. An unknown operator fixes all that it touches.

A channel may be scaled if its producer can be multiplied (filters and biases of a layer, scale
and shift of a norm) and everything that reads it either divides (a layer's weights) or passes the
factor on (sums, ReLU and its kin, pools, resizes, means, whatever moves values, attention from its
values to its result). Functions that are not positively homogeneous, as GELU and SiLU, do not.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ternary_ops.graph import channel_ops as kinds
from ternary_ops.graph.changes import read_without_call
from ternary_ops.graph.channel_axes import ChannelAxes, Dims
from ternary_ops.graph.functional_layers import COMPUTED
from ternary_ops.graph.nodes import is_slope, module_of
from ternary_ops.graph.trace import Interpreter
from ternary_ops.layout.channel_groups import ChannelGroups

_UNKNOWN = "is not known to keep channels apart"


@torch.no_grad()
def channel_groups(traced: fx.GraphModule, x: Tensor) -> ChannelGroups:
    """Read a network by running it on x; values are the nodes of its graph that have channels.

    Raises UnsupportedModel where it does not run.
    """
    return read_channels(traced, x).groups


@torch.no_grad()
def read_channels(traced: fx.GraphModule, x: Tensor) -> ChannelAxes:
    """As channel_groups, with the shape of each value and the axes along which its channels lie."""
    reader = _Reader(traced)
    reader.run(x.clone())  # the network may work in place
    return reader.axes


class _Reader(Interpreter):
    """Visits each node when it has run."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.axes = ChannelAxes()
        self.groups = self.axes.groups
        self._several: set[fx.Node] = set()
        graph = traced.graph
        self._calls = Counter(id(module_of(n)) for n in graph.nodes if n.op == "call_module")
        self._owners = Counter(
            id(t) for m in traced.modules() for t in m._parameters.values() if t is not None
        )
        self._read = {*read_without_call(graph), *traced.meta.get(COMPUTED, ())}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; its channels are read on the way."""
        value = super().run_node(n)
        inputs = [m for m in n.all_input_nodes if m in self.axes.shapes or m in self._several]
        if n.op == "output":
            self.axes.fix(inputs, "the output of the network")
        elif isinstance(value, Tensor):
            self.axes.shapes[n] = value.shape
            self._visit(n, inputs)
        elif isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            self._several.add(n)
            if kinds.kind_of(n) != "move" or not self._move(n, inputs):
                self.axes.fix(inputs, f"{name_of(n)} {_UNKNOWN}")
        return value

    def _visit(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        kind = kinds.kind_of(node)
        if kind == "get_attr":
            return  # see _vector
        if kind == "placeholder":
            self.axes.add(node, (1,))
            self.axes.fix([node], "the input of the network")
            return
        known = all(
            m in self.axes.dims
            or (kind in ("pointwise", "attention") and m.op == "get_attr")
            or (kind == "move" and m in self.axes.moved)
            for m in inputs
        )
        if not known or kind not in _READ or not _READ[kind](self, node, inputs):
            if node not in self.axes.dims:
                constant = all(m.op == "get_attr" for m in inputs)
                self.axes.add(node, () if constant else (1,))
            shared = kind in ("layer", "norm") and not self._alone(node)
            why = "is called twice or shares its parameters" if shared else _UNKNOWN
            self.axes.fix([node, *inputs], f"{name_of(node)} {why}")

    def _alone(self, node: fx.Node) -> bool:
        """True when nothing else uses the module or its parameters."""
        module = cast(nn.Module, module_of(node))
        tensors = [id(t) for t in module._parameters.values() if t is not None]
        once = all(self._owners[t] == 1 and t not in self._read for t in tensors)
        return once and self._calls[id(module)] == 1

    def _layer(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        layer: Any = module_of(node)
        x, rank, name = inputs[0], len(self.axes.shapes[node]), str(node.target)
        conv = hasattr(layer, "kernel_size")
        dims = (1,) if conv else (rank - 1,)
        if rank < 2 or (conv and rank != layer.weight.ndim):
            return False
        self.axes.add(node, dims)
        if not self._alone(node):
            return False
        if self.axes.dims[x] != dims:  # filters are still one for each of its own channels
            self.axes.fix([x], f"{name_of(node)} {_UNKNOWN}")
            self.axes.fix([node], f"{name_of(node)} runs over other axes", "scale")
            self.groups.use(name, "producer", node)
            return layer_groups(layer) == 1
        parts = layer_groups(layer)
        if not kinds.scales(node):
            self.axes.fix([x, node], f"{name_of(node)} is not scaled", "scale")
        each = self.groups.width(node) // parts
        turned = isinstance(layer, nn.ConvTranspose2d)
        if parts > 1 and parts == layer.in_channels and (each == 1 or not turned):  # depthwise
            self.groups.tie(node, x, torch.arange(parts * each).numpy() // each)
            self.groups.use(name, "vector", node, parts)
            return True
        self.groups.use(name, "consumer", x, parts)
        self.groups.use(name, "producer", node, parts)
        if parts > 1:
            self.groups.split(x, parts)
            self.groups.split(node, parts)
        return True

    def _norm(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        norm: Any = module_of(node)
        (x,) = inputs
        last = isinstance(norm, nn.LayerNorm)
        dims = (len(self.axes.shapes[node]) - 1,) if last else (1,)
        if not self._alone(node) or (last and len(norm.normalized_shape) != 1):
            return False
        if self.axes.dims[x] != dims:
            if last:  # channels of its own, whose order is that of a value that cannot be told
                self.axes.add(node, dims)
                self.axes.fix([node], f"{name_of(node)} {_UNKNOWN}", "order", "removal")
                self.axes.fix([x], f"{name_of(node)} {_UNKNOWN}")
            return last and kinds.scales(node)
        self.axes.add(node, dims)
        self.groups.tie(node, x)
        self.groups.use(str(node.target), "vector", node)
        if isinstance(norm, (nn.LayerNorm, nn.GroupNorm)):
            reason = f"{type(norm).__name__} takes the mean over channels"
            self.groups.fix(x, reason, "removal")
        if isinstance(norm, nn.GroupNorm):
            self.groups.split(x, norm.num_groups)
        scaled = [x] if kinds.scales(node) else [x, node]
        self.axes.fix(scaled, f"{type(norm).__name__} undoes a factor", "scale")
        return True

    def _window(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        return all(self.axes.dims.get(m) == (1,) for m in inputs) and self._pointwise(node, inputs)

    def _pointwise(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        dims = next((d for m in inputs if (d := self.axes.aligned(node, m)) is not None), None)
        if dims is None:
            return False
        self.axes.add(node, dims)
        same = [m for m in inputs if self.axes.aligned(node, m) == dims]
        scaled = self._scaled(node, inputs, same)
        for m in inputs:
            if m in same:
                self.groups.tie(node, m, scale=m in scaled)
            elif not self._vector(node, m):
                if self.axes.spread(node, m, dims) != 1:
                    return False
                self.axes.fix([m], f"{name_of(node)} meets every channel with it")
        if not scaled:
            self.axes.fix([node, *inputs], f"{name_of(node)} does not pass factors on", "scale")
        if is_slope(node) and getattr(module_of(node), "num_parameters", 1) > 1:
            self.groups.use(str(node.target), "vector", node)
            return self._alone(node)
        return True

    def _scaled(self, node: fx.Node, inputs: list[fx.Node], same: list[fx.Node]) -> list[fx.Node]:
        """Inputs whose factors the value has."""
        if len(same) == len(inputs) and kinds.keeps_factors(node, len(inputs)):
            return inputs
        if not kinds.is_product(node) or len(inputs) != 2:
            return []
        # A map times a gate: the gate, which is that of the two that cannot be scaled or else the
        # second, keeps its size.
        first, second = inputs
        fixed = first not in self.groups or self.groups.is_fixed(first, "scale")
        gate, value = (first, second) if fixed else (second, first)
        self.axes.fix([gate], "a gate", "scale")
        return [value] if value in same else []

    def _vector(self, node: fx.Node, m: fx.Node) -> bool:
        """Tie a parameter of the model's own that has an element a channel and nothing else."""
        shape, dims = self.axes.shapes[m], self.axes.dims[node]
        own = m.op == "get_attr" and not str(m.target).startswith("_tensor_constant")
        parameter = self.fetch_attr(str(m.target)) if own else None
        if parameter is None or len(m.users) != 1 or self._owners[id(parameter)] > 1:
            return False
        width = math.prod(self.axes.shapes[node][d] for d in dims)
        if math.prod(shape) != width or self.axes.spread(node, m, dims) != width:
            return False
        self.groups.add(m, width)
        self.groups.tie(m, node)
        self.groups.fix(m, "a parameter beside layers", "scale")
        self.groups.use(str(m.target), "vector", m)
        return True

    def _pixels(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Pixel shuffles: a channel of the larger image is a block of the smaller one's."""
        (x,) = inputs
        if self.axes.dims[x] != (1,) or len(self.axes.shapes[x]) != 4:
            return False
        self.axes.add(node, (1,))
        few, many = sorted((node, x), key=self.groups.width)
        count = self.groups.width(many)
        block = torch.arange(count).numpy() // (count // self.groups.width(few))
        self.groups.tie(many, few, block)
        self.axes.fix([node, x], "pixels come from several channels", "scale")
        return True

    def _softmax(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        dim, (x,) = kinds.softmax_dim(node), inputs
        if not isinstance(dim, int):
            return False
        self.axes.add(node, self.axes.dims[x])
        self.groups.tie(node, x)
        if dim % len(self.axes.shapes[node]) in self.axes.dims[x]:
            self.groups.fix(x, "softmax is taken over channels", "removal")
        self.axes.fix([node, x], "softmax", "scale")
        return True

    def _matmul(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Products of matrices of one head each: heads stay together."""
        if len(node.args) != 2 or not all(isinstance(a, fx.Node) for a in node.args):
            return False
        a, b = cast("tuple[fx.Node, fx.Node]", node.args)
        rank = len(self.axes.shapes[node])
        heads = self.axes.heads(a, rank)
        if not heads or self.axes.heads(b, rank) != heads:
            return False
        da, db = self.axes.dims[a], self.axes.dims[b]
        if (rank - 1 in da) != (rank - 2 in db):
            return False
        rows = [rank - 2] if rank - 2 in da else []
        columns = [rank - 1] if rank - 1 in db else []
        values = b if columns and not rows and rank - 2 not in db else None
        return self._tie_heads(node, [a, b], (*heads, *rows, *columns), len(heads), values)

    def _attention(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        if len(node.args) < 3 or node.kwargs.get("enable_gqa"):
            return False
        mask = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
        rank = len(self.axes.shapes[node])
        parts = cast("list[fx.Node]", list(node.args[:3]))
        heads = self.axes.heads(parts[0], rank)
        wanted = (*heads, rank - 1)
        if not heads or any(
            self.axes.heads(m, rank) != heads or self.axes.dims[m] != wanted for m in parts
        ):
            return False
        if not self._tie_heads(node, parts, wanted, len(heads), parts[2]):
            return False
        if isinstance(mask, fx.Node):  # it may have a part for each head
            reason = f"{name_of(node)} reads a mask"
            self.axes.fix([node, *parts], reason, "order", "removal")
            self.axes.fix([mask], reason)
        return True

    def _tie_heads(
        self, node: fx.Node, parts: list[fx.Node], dims: Dims, axes: int, values: fx.Node | None
    ) -> bool:
        """Tie heads; what is linear in `values` has their factors."""
        shapes = [[self.axes.shapes[m][d] for d in dims[:axes]] for m in (node, *parts)]
        if any(shape != shapes[0] for shape in shapes):
            return False
        self.axes.add(node, dims)
        count = math.prod(shapes[0])
        size = self.groups.width(node) // count
        for m in (node, *parts):
            width = self.groups.width(m)
            head = torch.arange(width).numpy() // (width // count)
            self.groups.tie(m, node, head * size)
        if values is not None:
            self.groups.tie(values, node, scale=True)
        scored = [m for m in parts if m is not values]
        self.axes.fix(scored if values is not None else [node, *parts], "attention", "scale")
        return True

    def _reduce(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Means and their kin, if they do not run over channels."""
        dims, keeps = kinds.reduced_dims(node)
        (x,) = inputs
        if dims is None:
            return False
        found = self._numbers(x)
        least, most = (f(found, dim=dims, keepdim=keeps) for f in (torch.amin, torch.amax))
        return torch.equal(least, most) and self._settle(node, [x], least)

    def _move(self, node: fx.Node, inputs: list[fx.Node]) -> bool:
        """Whatever puts values elsewhere: it is shown the channels' numbers in place of values."""
        indexed = node.target is operator.getitem and len(inputs) != 1
        retyped = any(isinstance(a, torch.dtype) for a in node.args)
        channels = all(self.axes.dims.get(m) or m in self.axes.moved for m in inputs)
        if indexed or retyped or not channels:
            return False
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._numbers)
        calls: dict[str, Any] = {
            "call_function": self.call_function,
            "call_method": self.call_method,
            "call_module": self.call_module,
        }
        found = calls[node.op](node.target, args, kwargs)
        if not isinstance(found, Tensor):
            self.axes.moved[node] = found
            self.axes.origins[node] = self.axes.sources(inputs)
            return True
        return self._settle(node, self.axes.sources(inputs), found)

    def _numbers(self, m: fx.Node) -> Any:
        """The numbers of the channels that m's elements belong to; m's value where it has none."""
        known = m in self.axes.dims or m in self.axes.moved
        return self.axes.numbers(m) if known else self.env[m]

    def _settle(self, node: fx.Node, sources: list[fx.Node], found: Tensor) -> bool:
        """Tie the node's channels to those whose numbers it holds."""
        dims = tuple(
            d for d in range(found.ndim) if bool((found != found.narrow(d, 0, 1)).any())
        ) or (1,) * (found.ndim > 1 and found.shape[1] == 1)
        if not dims:
            return False
        unfolded = dims == (1, 2, 3) and found.ndim == 4  # rows that become an image
        self.axes.add(node, (1,) if unfolded else dims)
        for d in reversed(range(found.ndim)):
            found = found if d in dims else found.select(d, 0)
        pixels = found.flatten(1).T if unfolded else found.reshape(1, -1)
        for index in pixels.long().numpy():
            self.axes.tie(node, sources, index)
        return True


_READ = {
    "layer": _Reader._layer,
    "norm": _Reader._norm,
    "window": _Reader._window,
    "pointwise": _Reader._pointwise,
    "move": _Reader._move,
    "reduce": _Reader._reduce,
    "softmax": _Reader._softmax,
    "matmul": _Reader._matmul,
    "attention": _Reader._attention,
    "pixels": _Reader._pixels,
    "pad": _Reader._window,
}


def layer_groups(layer: nn.Module) -> int:
    """Groups of a convolution; 1 of a linear layer."""
    return int(getattr(layer, "groups", 1))


def name_of(node: fx.Node) -> str:
    """Readable name of what a node calls, for messages."""
    module = module_of(node)
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    return str(getattr(node.target, "__name__", node.target))
