# SPDX-License-Identifier: Apache-2.0
"""Ranges of the channels of what layers make and read, and the output's sensitivity to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ternary_ops.errors import BadWeights, UnsupportedModel, need
from ternary_ops.graph.channel_axes import ChannelAxes
from ternary_ops.graph.nodes import is_layer
from ternary_ops.graph.trace import Interpreter

_ROUNDS = 2  # random directions of the output in each batch


@dataclass
class Seen:
    """Per channel of a value: range, mean square, and the output's squared sensitivity to it."""

    low: Tensor
    high: Tensor
    square: Tensor
    felt: Tensor


class Watch(Interpreter):
    """Runs the traced network and gathers, per value, what Seen has."""

    def __init__(self, traced: fx.GraphModule, axes: ChannelAxes) -> None:
        super().__init__(traced)
        self.axes = axes
        self.seen: dict[fx.Node, Seen] = {}
        self._values: dict[fx.Node, Tensor] = {}
        self._wanted = {
            n for layer in traced.graph.nodes if is_layer(layer) for n in (layer, layer.args[0])
        }
        self._generator = torch.Generator().manual_seed(0)
        self.outputs = 0  # numbers looked at, in all directions

    def look(self, x: Tensor) -> None:
        """One batch more."""
        self._values = {}
        with torch.enable_grad():
            y = self.run(x.detach().clone().requires_grad_())
        if not isinstance(y, Tensor):
            do = "Wrap it so that it returns one."
            raise UnsupportedModel(need("a model that returns a tensor", type(y).__name__, do))
        nodes = [n for n, value in self._values.items() if value.requires_grad]
        felt = {n: self._rows(n, value.detach())[:, 0] * 0 for n, value in self._values.items()}
        for _ in range(_ROUNDS):
            self.outputs += y.numel()
            signs = torch.randint(0, 2, y.shape, generator=self._generator).to(y) * 2 - 1
            values = [self._values[n] for n in nodes]
            grads = torch.autograd.grad(y, values, signs, retain_graph=True, allow_unused=True)
            for node, grad in zip(nodes, grads, strict=True):
                if grad is not None:
                    felt[node] += self._rows(node, grad).square().sum(1)
        for node, value in self._values.items():
            self._add(node, value.detach(), felt[node])
        self._values = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; kept if a layer makes or reads it."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and n in self._wanted and value.ndim >= 2:
            # A copy: what runs next may work in place.
            self._values[n] = value = value.clone()
        return value

    def _add(self, node: fx.Node, value: Tensor, felt: Tensor) -> None:
        rows = self._rows(node, value)
        new = Seen(rows.amin(1), rows.amax(1), rows.square().mean(1), felt)
        old = self.seen.get(node)
        if old is not None:
            new = Seen(
                torch.minimum(old.low, new.low), torch.maximum(old.high, new.high),
                old.square + new.square, old.felt + new.felt,
            )  # fmt: skip
        self.seen[node] = new

    def _rows(self, node: fx.Node, value: Tensor) -> Tensor:
        """[C, the rest]; axis 1 counts as that of channels where they have none."""
        dims = self.axes.dims.get(node) or (1,)
        moved = value.double().movedim(dims, tuple(range(len(dims))))
        return moved.flatten(0, len(dims) - 1).flatten(1).cpu()

    def check_finite(self) -> None:
        """Raise BadWeights where a value was not."""
        for node, seen in self.seen.items():
            if not bool((seen.high - seen.low).isfinite().all()):
                do = "Check the weights before it, and the batches."
                raise BadWeights(need("finite values", f"NaN or infinity in {node.name}", do))
