# SPDX-License-Identifier: Apache-2.0
"""Correction without training: BatchNorm statistics and biases, refitted on a few samples."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.signature import signature_of
from ternary_ops.graph.wrappers import unwrap


@torch.no_grad()
def recalibrate_batchnorm_(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Replace the running statistics of every BatchNorm by those of `batches`, averaged.

    batches: tensors [N, ...], or tuples that start with one. Use it after weights changed without
    training (pruning, ternarization, a refit of scales), which leaves the statistics stale. Nothing
    else changes; the model ends in eval mode. A network without BatchNorm is left as it is.
    Raises UnsupportedModel, with the statistics as they were, for a batch that holds no tensor and
    without samples.
    """
    given, model = model, unwrap(model)
    call = partial(signature_of(model).call, model)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats]
    before = [(m.momentum, {k: v.clone() for k, v in m.named_buffers()}) for m in norms]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over batches
            norm.train()
        for x, _ in samples(model, batches):
            call(x)
    except BaseException:
        for norm, (_, buffers) in zip(norms, before, strict=True):
            for key, value in buffers.items():
                norm.get_buffer(key).copy_(value)
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
        model.eval()
    return given


@torch.no_grad()
def correct_bias_(model: nn.Module, dense: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Bias correction: add to each quantized layer's bias the shift of its mean output.

    Per channel, E[output of the layer in `dense`] - E[output], layer by layer in execution order,
    each with the earlier corrections applied; Nagel et al. 2019 (arXiv 1906.04721, section 4.2,
    empirical). A layer without bias gets one, unless a BatchNorm reads it, which would subtract its
    mean anyway (recalibrate_batchnorm_). Both networks end in eval mode.

    dense: the float network, its layers under the same names. batches: as for calibrate; read once
    per layer, so a generator is first kept in memory.
    Returns the largest correction of each corrected layer. Raises UnsupportedModel without
    quantized layers, or when `dense` has no layer of that name and output.
    """
    model, dense = unwrap(model), unwrap(dense)
    kept = [x for x, _ in samples(model, batches)]
    layers = {n: m for n, m in model.named_modules() if isinstance(m, tnn.TernaryLayer)}
    twins = dict(dense.named_modules())
    missing = [name for name in layers if name not in twins]
    if not layers or missing:
        what = "for bias correction quantized layers, and a dense network with the same names"
        do = "Call quantize_ on a copy of the dense network."
        raise UnsupportedModel(need(what, f"none for {missing}" if layers else "none", do))
    dense.eval()
    model.eval()
    order, followed = _order(model, layers, kept[0])
    wanted = _means(dense, [twins[name] for name in order], kept)
    corrections = {}
    for name, mean in zip(order, wanted, strict=True):
        layer = layers[name]
        if name in followed:
            continue
        shift = mean - _means(model, [layer], kept)[0]
        if layer.bias is None:
            layer.bias = nn.Parameter(shift.to(layer.weight.dtype))
        else:
            layer.bias.add_(shift.to(layer.bias.dtype))
        corrections[name] = float(shift.abs().max())
    return corrections


def _order(
    model: nn.Module, layers: dict[str, tnn.TernaryLayer], x: Tensor
) -> tuple[list[str], set[str]]:
    """Names in the order of their first call, and those whose very output enters a BatchNorm."""
    order: list[str] = []
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept: its id must not be used again
    followed: set[str] = set()
    handles = []
    for name, layer in layers.items():

        def called(module: nn.Module, given: Any, y: Tensor, name: str = name) -> None:
            if name not in order:
                order.append(name)
            made[id(y)] = (name, y)

        handles.append(layer.register_forward_hook(called))

    def normalized(module: nn.Module, given: tuple[Any, ...]) -> None:
        if id(given[0]) in made:
            followed.add(made[id(given[0])][0])

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles += [norm.register_forward_pre_hook(normalized) for norm in norms]
    try:
        signature_of(model).call(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return order, followed


def _means(model: nn.Module, layers: list[nn.Module], batches: list[Tensor]) -> list[Tensor]:
    """Mean output per channel, float64 [O], of each layer over all batches."""
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def add(module: nn.Module, given: Any, y: Tensor) -> None:
        channel = 1 if y.ndim >= 4 else y.ndim - 1
        flat = y.detach().double().movedim(channel, 0).flatten(1)
        sums[module] = sums.get(module, torch.zeros(())) + flat.sum(1)
        counts[module] = counts.get(module, 0) + flat.shape[1]

    handles = [layer.register_forward_hook(add) for layer in layers]
    call = partial(signature_of(model).call, model)
    try:
        for x in batches:
            call(x)
    finally:
        for handle in handles:
            handle.remove()
    return [sums[layer] / counts[layer] for layer in layers]
