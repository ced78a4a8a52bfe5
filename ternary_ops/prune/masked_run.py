# SPDX-License-Identifier: Apache-2.0
"""The proof of a removal: what a network computes with maps at zero, and without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ternary_ops.errors import TernaryOpsError, UnsupportedModel, first_line, need
from ternary_ops.graph.narrowing import Kept, kept_mask
from ternary_ops.graph.signature import outputs_of, signature_of
from ternary_ops.graph.trace import Interpreter, restoring
from ternary_ops.nn import TernaryLayer
from ternary_ops.prune.filter_network import FilterNetwork

# Float sums in another order differ by less, however deep the network; channels that are mixed up
# by more.
_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}
_SAME_HALF = 5e-2
_DO = "Nothing was changed: leave the groups that it reads whole."


@torch.no_grad()
def masked_outputs(network: FilterNetwork, kept: Mapping[str, Tensor]) -> list[Tensor] | None:
    """The network's outputs for its example with the other channels at zero, wherever they are.

    None with quantized layers that have left phase "float": their scales follow the weights that
    are left.
    """
    layers = [m for m in network.model.modules() if isinstance(m, TernaryLayer)]
    if any(layer.phase != "float" for layer in layers):
        return None
    with restoring(network.model):
        made = _Masked(network, network.kept(kept)).run(network.example.clone())
    return list(outputs_of(made).values())


def check_same(network: FilterNetwork, wanted: list[Tensor] | None) -> None:
    """Raise UnsupportedModel unless the network, narrower by now, runs and returns that."""
    model = network.model
    try:
        with restoring(model), torch.no_grad():
            made = signature_of(model).call(model, network.example.clone())
    except TernaryOpsError as error:
        what = "a network whose own code follows when channels go"
        raise UnsupportedModel(need(what, first_line(error), _DO)) from error
    off = 0.0 if wanted is None else differ(list(outputs_of(made).values()), wanted)
    if off:
        what = "a network that computes without channels what it does with them at zero"
        got = f"outputs that differ by {off:.2g} of the largest"
        raise UnsupportedModel(need(what, got, _DO))


def failure_in_training(network: FilterNetwork) -> str:
    """What the network's parts for training alone raise on the example; empty if there are none, or
    if they run. Buffers and random numbers stay as they are.
    """
    beside, model = network.beside(), network.model
    if not beside:
        return ""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with restoring(model), torch.random.fork_rng(), torch.no_grad():
            model.train()
            signature_of(model).call(model, network.example.clone())
    except TernaryOpsError as error:
        return f"{', '.join(beside[:3])}: {first_line(error)}"
    finally:
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
    return ""


def check_training(network: FilterNetwork, before: str) -> None:
    """Raise UnsupportedModel where parts for training alone fail by now; before: what they raised
    when the network was whole.
    """
    why = "" if before else failure_in_training(network)
    if why:
        do = "Nothing was changed: take these parts out of the network first."
        what = "parts for training alone that follow when channels go"
        raise UnsupportedModel(need(what, why, do))


def differ(found: list[Tensor], wanted: list[Tensor]) -> float:
    """By how much of the largest value outputs differ, where that is more than float rounding;
    otherwise 0.
    """
    if len(found) != len(wanted):
        return float("inf")
    apart = (
        (_difference(a, b), _SAME.get(b.dtype, _SAME_HALF))
        for a, b in zip(found, wanted, strict=True)
    )
    return max((off for off, bound in apart if not off <= bound), default=0.0)


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value; of what is not finite, infinity unless both
    are alike.
    """
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    a, b = (t.detach().double().nan_to_num(0.0, 0.0, 0.0) for t in (one, other))
    if a.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


class _Masked(Interpreter):
    """Runs a trace with channels at zero in every value that has them."""

    def __init__(self, network: FilterNetwork, kept: Kept) -> None:
        super().__init__(network.traced)
        self._masks: dict[fx.Node, Tensor] = {}
        for node in network.axes.dims:
            mask = kept_mask(network.axes, node, kept)
            if not mask.all():
                self._masks[node] = mask

    def run_node(self, n: fx.Node) -> Any:
        """The value, channels that go at zero."""
        value = super().run_node(n)
        mask = self._masks.get(n)
        return value if mask is None else value * mask.to(value.device)
