# SPDX-License-Identifier: Apache-2.0
"""Run a trace on the example: it must compute what the network does, and its shapes are noted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.trace import Interpreter

_ROUNDING = 1e-3  # relative to the largest output


class Shapes(Interpreter):
    """Runs a traced network once and notes every value's shape: None for sizes and constants, ()
    for several tensors at once.
    """

    def run_node(self, n: fx.Node) -> Any:
        """As the base class, and fill n.meta["shape"]; of several tensors, "sizes" (channels)."""
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            n.meta["shape"] = ()
            n.meta["sizes"] = _channels_of(value, n)
        return value


def run_checked(traced: fx.GraphModule, x: Tensor, expected: Any) -> Any:
    """Output of the trace for x; records shapes. A trace misses what Python does to tensors without
    it: raises UnsupportedModel unless that is the network's output, `expected` (None: unknown).
    """
    made = Shapes(traced).run(x.clone())
    check_same(made, expected)
    return made


def check_same(made: Any, expected: Any) -> None:
    """Raise UnsupportedModel unless `made` is the network's output (None: unknown)."""
    if not isinstance(made, Tensor) or not isinstance(expected, Tensor):
        return  # read says that one output tensor is supported
    finite = expected.nan_to_num(0.0, 0.0, 0.0).abs()
    bound = _ROUNDING * float(finite.max()) if finite.numel() else 0.0
    same = expected.shape == made.shape
    if not (same and torch.allclose(expected, made, rtol=0.0, atol=bound, equal_nan=True)):
        raise UnsupportedModel(
            need(
                "a traced model that computes what the model does",
                "another result for example_input",
                "Avoid x += y on a tensor that has a second name, and randomness in eval mode.",
            )
        )


def _channels_of(values: Any, node: fx.Node) -> list[int] | None:
    """Channels of each part where parts differ from the whole in channels alone."""
    whole = node.args[0].meta.get("shape") if isinstance(node.args[0], fx.Node) else None
    shapes = [tuple(v.shape) for v in values if isinstance(v, Tensor)]
    if not whole or any(len(s) < 2 or (s[0], *s[2:]) != (whole[0], *whole[2:]) for s in shapes):
        return None
    sizes = [s[1] for s in shapes]
    return sizes if sum(sizes) == whole[1] else None
