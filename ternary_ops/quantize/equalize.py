# SPDX-License-Identifier: Apache-2.0
"""Cross-layer equalization: channels scaled so that 8 bits cost the output least.

A value's channels share one scale, so that a channel of small range gets few of the 255 levels.
Multiplying a channel by f where it is made and dividing by f where it is read changes nothing in a
float network, and everything in a quantized one. Nagel et al. 2019 (arXiv 1906.04721, section 4.1)
make ranges of weights equal, pair by pair; here all factors are found together, as those that make
what rounding does to the output's square least (ours):

    sum over values read by layers   step^2 / 12 * sum_c s_c / f_c^2
  + sum over filters                 step_o^2 / 12 * s_o * sum_i K_i f_i^2 E[x_i^2]

step is that of the scaled value's range over 255 levels, step_o of the scaled filter's largest
weight over 127, s the output's squared sensitivity to a value, E (J^T r)^2 with random signs r.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, section 4) moves ranges of activations into weights
by a formula: f_c = max |w_c|^(1 - a) / max |x_c|^a, w_c all weights that read channel c. It looks
at ranges alone; `smoothing` asks for it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.graph.batches import batch_of, samples
from ternary_ops.graph.changes import Changes
from ternary_ops.graph.channel_axes import ChannelAxes
from ternary_ops.graph.channel_ops import scales
from ternary_ops.graph.channels import read_channels
from ternary_ops.graph.nodes import is_layer, module_of
from ternary_ops.graph.signature import result
from ternary_ops.graph.trace import ON_EXAMPLE, trace_at
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.layout.channel_groups import ChannelGroups
from ternary_ops.quantize.watched_channels import Watch

_STEPS = 400
_RATE = 0.05  # of Adam, on logarithms of factors
_AT_ONCE = 2**17  # numbers of the input that go through the network together
# Outputs may differ by rounding, relative to the largest.
_ROUNDING = 1e-3


class Equalized(NamedTuple):
    """Expected mean squared error of the output from rounding to 8 bits, before and after;
    channels: how many were scaled.
    """

    before: float
    after: float
    channels: int


def equalize_(
    model: nn.Module, batches: Iterable[Any], *, smoothing: float | None = None
) -> Equalized:
    """Cross-layer equalization: scale the inner channels of a float network in place, for 8 bits.

    Call it before quantize_, and after folding, if any. The network computes the same up to float
    rounding. batches: tensors, or tuples that start with one, as for calibrate; a few dozen
    samples. Only channels read by sums, products with a gate, ReLU and its kin, pools, resizes,
    means and what moves values are scaled; input and output keep their scale. Of transformers: what
    a LayerNorm makes, by its weight and bias, for all linear layers that read it (queries, keys and
    values; fc1), and values of attention for the projection. fc2 reads what a GELU makes, which is
    no multiple of what it takes: that keeps its scale. Deterministic.

    smoothing: SmoothQuant's migration strength, 0 to 1 (0.5 is the paper's), which takes factors
    from ranges alone; None: those of least expected error.

    Raises BadConfig for quantized layers or another strength, BadWeights when a value is not
    finite, and UnsupportedModel, with the model as it was, if it cannot be traced, returns no
    tensor, or a layer to scale has hooks or a weight that is recomputed at every call.
    """
    model = unwrap(model)
    if any(hasattr(m, "phase_code") for m in model.modules()):
        do = "Call equalize_ on the float network, then quantize_."
        raise BadConfig(
            need(
                "a float network (channels are equalized before quantize_)", "quantized layers", do
            )
        )
    if smoothing is not None and not 0 <= smoothing <= 1:
        raise BadConfig(need("smoothing in 0..1, or None", repr(smoothing), "Pass 0.5."))
    inputs = [x for x, _ in samples(model, batches)]
    training = model.training
    model.eval()
    try:
        traced = trace_at(model, inputs[0])
        axes = read_channels(traced, batch_of(inputs[0], 2))
        channels = axes.groups
        _check_rewritable(model, traced, channels)
        watch = Watch(traced, axes)
        for x in inputs:
            # All values of a network and their gradients are held at once.
            most = max(1, _AT_ONCE * len(x) // max(1, x.numel()))
            if traced.meta[ON_EXAMPLE]:  # of two samples, the last one perhaps twice
                most, x = 2, batch_of(x, len(x) + len(x) % 2)
            for part in torch.split(x, most):
                watch.look(part)
        watch.check_finite()
        free = torch.from_numpy(channels.free_factors())
        noise = _Noise(traced, watch, axes)
        found = noise.least(free) if smoothing is None else noise.smoothed(free, smoothing)
        logs, before, after = found
        _apply_checked(model, traced, channels, logs.exp(), inputs[0])
    finally:
        model.train(training)
    return Equalized(before, after, int((logs != 0).sum()))


def _check_rewritable(model: nn.Module, traced: fx.GraphModule, channels: ChannelGroups) -> None:
    """Refuse, before anything changes, what must not be written into or see other values."""
    changes, free = Changes(model, traced.graph), channels.free_factors()
    for node in traced.graph.nodes:
        module = module_of(node)
        around = [v for v in (node, *node.all_input_nodes) if v in channels]
        if module is not None and any(free[channels.factors(v)].any() for v in around):
            own = changes.own(node) or module  # a subclass whose forward calls a function
            changes.check([own], "rewrite" if scales(node) else "pass", "equalized")


@dataclass
class _Read:
    """A value that layers read: ids of its channels' factors, range and sensitivity."""

    ids: Tensor
    low: Tensor
    high: Tensor
    felt: Tensor


@dataclass
class _Filters:
    """A layer: |W|'s maximum over taps [O, I], ids of what it reads, and row sums' parts; of one
    group these have one row for all filters.
    """

    peaks: Tensor
    ids: Tensor
    felt: Tensor  # [O]
    square: Tensor  # as ids: taps times E[x^2]


@dataclass
class _Noise:
    """The sum at the head of this file, as a function of the factors' logarithms."""

    traced: fx.GraphModule
    watch: Watch
    axes: ChannelAxes
    reads: list[_Read] = field(default_factory=list)
    filters: list[_Filters] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take what matters out of what was seen."""
        read = {}
        for node in self.traced.graph.nodes:
            x = node.args[0] if is_layer(node) else None
            if x is None or x not in self.axes.groups or node not in self.axes.groups:
                continue
            read[x] = self.watch.seen[x]
            made = self._filters(node, x)
            if made is not None:
                self.filters.append(made)
        for x, seen in read.items():
            self.reads.append(_Read(self._ids(x), seen.low, seen.high, seen.felt))

    def _ids(self, x: fx.Node) -> Tensor:
        """The factors of a value's channels, each as often as it was seen."""
        ids = self.axes.groups.factors(x)
        return torch.from_numpy(np.resize(ids, len(self.watch.seen[x].low)))

    def _filters(self, node: fx.Node, x: fx.Node) -> _Filters | None:
        layer = cast(Any, module_of(node))
        weight = cast(Tensor, layer.weight).detach().double().cpu()
        index = inputs_of_filters(layer)
        if int(getattr(layer, "groups", 1)) == 1:
            index = index[:1]  # all filters read the same: 400 steps over a row in place of all
        seen, ids = self.watch.seen[x], self._ids(x)
        along = self.axes.dims[x] == self.axes.dims[node]
        if not along or int(index.max()) >= len(ids) or len(weight) != self.axes.groups.width(node):
            return None
        flat = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
        square = seen.square[index] * flat.shape[2]
        return _Filters(flat.abs().amax(2), ids[index], self.watch.seen[node].felt, square)

    def total(self, logs: Tensor) -> Tensor:
        """The expected squared error."""
        parts = []
        for r in self.reads:
            factor = logs[r.ids].exp()
            span = (r.high * factor).amax().clamp_min(0) - (r.low * factor).amin().clamp_max(0)
            parts.append((span / 255).square() / 12 * (r.felt / factor.square()).sum())
        for f in self.filters:
            factor = logs[f.ids].exp()
            step = (f.peaks / factor).amax(1) / 127
            rows = (f.square * factor.square()).sum(1)
            parts.append((step.square() / 12 * f.felt * rows).sum())
        return torch.stack(parts).sum() / self.watch.outputs

    def smoothed(self, free: Tensor, strength: float) -> tuple[Tensor, float, float]:
        """As `least`, by SmoothQuant's formula. A channel that nothing makes or reads has none."""
        inputs, weights = (torch.zeros(len(free), dtype=torch.float64) for _ in range(2))
        for r in self.reads:
            inputs.scatter_reduce_(0, r.ids, torch.maximum(r.high.abs(), r.low.abs()), "amax")
        for f in self.filters:
            ids = f.ids.expand_as(f.peaks).flatten()
            weights.scatter_reduce_(0, ids, f.peaks.flatten(), "amax")
        logs = (1 - strength) * weights.log() - strength * inputs.log()
        logs = torch.where(free & (inputs > 0) & (weights > 0), logs, 0.0)
        if not self.reads:
            return logs, 0.0, 0.0
        return logs, float(self.total(torch.zeros_like(logs))), float(self.total(logs))

    def least(self, free: Tensor) -> tuple[Tensor, float, float]:
        """Logarithms of the factors, and the sum before and after."""
        logs = torch.zeros(len(free), dtype=torch.float64)
        if not self.reads or not bool(free.any()):
            return logs, 0.0, 0.0
        best, before = logs, float(self.total(logs))
        least = before
        logs.requires_grad_()
        optimizer = torch.optim.Adam([logs], _RATE)
        slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS if before > 0 else 0):
            value = self.total(logs)
            if (found := float(value.detach())) < least:
                best, least = logs.detach().clone(), found
            # In logarithms: rates that suit one network suit all.
            (grad,) = torch.autograd.grad(value.log(), logs)
            logs.grad = torch.where(free, grad, 0.0)
            optimizer.step()
            slower.step()
        return best.detach(), before, least


def inputs_of_filters(layer: nn.Module) -> Tensor:
    """Input channel that each weight [O, I, ...] of a layer reads, int64 [O, I]."""
    weight, groups = cast(Tensor, layer.weight), int(getattr(layer, "groups", 1))
    group = torch.arange(len(weight)) // (len(weight) // groups)
    return group[:, None] * weight.shape[1] + torch.arange(weight.shape[1])


@torch.no_grad()
def _apply_checked(
    model: nn.Module, traced: fx.GraphModule, channels: ChannelGroups, factors: Tensor, x: Tensor
) -> None:
    kept = copy.deepcopy(model.state_dict())
    expected = result(model, x)
    for node in traced.graph.nodes:
        if scales(node) and node in channels:
            apply_factors(node, channels, factors)
    found = result(model, x)
    if not float((found - expected).abs().max()) <= _ROUNDING * float(expected.abs().max()):
        model.load_state_dict(kept)
        what = "an equalized network that computes what it did"
        raise UnsupportedModel(need(what, "another output", "Report this model; it was misread."))


def apply_factors(node: fx.Node, channels: ChannelGroups, factors: Tensor) -> None:
    """Multiply the output of a layer or BatchNorm by its factors, and divide its input by those of
    its input; factors: by their numbers in `channels`.
    """
    layer = cast(Any, module_of(node))
    made = factors[channels.factors(node)]
    x = cast(fx.Node, node.args[0])
    for name in ("weight", "bias"):
        tensor = cast("Tensor | None", getattr(layer, name))
        if tensor is None:
            continue
        scale = made
        if tensor.ndim > 1:
            index = inputs_of_filters(layer)
            ids = channels.factors(x) if x in channels else None
            if ids is None or len(made) != len(tensor) or int(index.max()) >= len(ids):
                return  # axis 1 is not that of its channels: fixed
            scale = made[:, None] / factors[ids][index]
            scale = scale.view(*scale.shape, *[1] * (tensor.ndim - 2))
        elif len(made) != len(tensor):
            return
        tensor.copy_(tensor.double() * scale.to(tensor.device))
