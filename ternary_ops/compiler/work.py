# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of every node of a trace, programs and islands alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ternary_ops.graph.nodes import module_of
from ternary_ops.graph.trace import Interpreter
from ternary_ops.nn import PackedLayer


def count_macs(traced: fx.GraphModule, x: Tensor) -> None:
    """Set node.meta["macs"], multiply-adds on x, and "dtype", None for what is no tensor.

    Convolutions and products of matrices count, as torch's FlopCounterMode sees them, in attention
    and recurrent layers too: their fused kernels, which it does not see into, are turned off.
    """
    with _plain_kernels(), FlopCounterMode(display=False) as counter:
        _Work(traced, counter).run(x.clone())


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
    """Runs a trace under a counter."""

    def __init__(self, module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, its work noted."""
        before = self._counter.get_total_flops()
        value = super().run_node(n)
        n.meta["macs"] = (self._counter.get_total_flops() - before) / 2
        n.meta["dtype"] = value.dtype if isinstance(value, Tensor) else None
        module = module_of(n)
        if isinstance(module, PackedLayer) and isinstance(value, Tensor):  # an operator of ours
            n.meta["macs"] = value.numel() * module.integer_weight()[0][0].numel()
        return value
