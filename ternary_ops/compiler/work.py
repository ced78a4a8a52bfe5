# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of every node of a trace, programs and islands alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ternary_ops.graph import torch_ops as ops
from ternary_ops.graph.nodes import module_of, operator_of
from ternary_ops.graph.trace import Interpreter
from ternary_ops.nn import PackedLayer

_LAYERS = (ops.CONV2D, ops.CONV1D, ops.CONV_TRANSPOSE2D, ops.LINEAR)


def count_macs(traced: fx.GraphModule, x: Tensor) -> None:
    """Set node.meta["macs"], multiply-adds on x, and "dtype", None for what is no tensor.

    Convolutions and products of matrices count, as torch's FlopCounterMode sees them, in attention
    and recurrent layers too: their fused kernels, which it does not see into, are turned off.
    """
    _Work(traced).run(x.clone())


@contextmanager
def _plain_kernels() -> Iterator[None]:
    mha, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(mha)
        torch.backends.mkldnn.set_flags(mkldnn)  # type: ignore[no-untyped-call]


class _Work(Interpreter):
    """Runs a trace and counts, by shapes where the operator says how: the counter of PyTorch loads
    its compiler, which takes seconds.
    """

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, its work noted."""
        if _shapes_tell(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            first = next(iter((*args, *kwargs.values())), None)
            shape = first.shape if isinstance(first, Tensor) else ()
            value = super().run_node(n)
            n.meta["macs"] = _by_shapes(n, shape, value)
        else:
            with _plain_kernels(), FlopCounterMode(display=False) as counter:
                value = super().run_node(n)
            n.meta["macs"] = counter.get_total_flops() / 2
        n.meta["dtype"] = value.dtype if isinstance(value, Tensor) else None
        return value


def _shapes_tell(node: fx.Node) -> bool:
    op = operator_of(node)
    if op is None:
        return node.op in ("placeholder", "get_attr", "output")
    if op in _LAYERS:
        return node.op == "call_module"
    return op not in (ops.EINSUM, ops.ATTENTION, ops.ADDMM)


def _by_shapes(node: fx.Node, first: Sequence[int], value: Any) -> int:
    """Of the first operand and the value."""
    op = operator_of(node)
    if op is ops.MATMUL:
        return int(value.numel()) * first[-1]
    if op not in _LAYERS:
        return 0
    layer: Any = module_of(node)
    weight = layer.integer_weight()[0] if isinstance(layer, PackedLayer) else layer.weight
    times = math.prod(first) if op is ops.CONV_TRANSPOSE2D else int(value.numel())
    return times * math.prod(weight.shape[1:])
