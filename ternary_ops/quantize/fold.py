# SPDX-License-Identifier: Apache-2.0
"""Fold BatchNorm into the layer before it: its statistics become part of scale and bias."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

import ternary_ops.nn as tnn  # by module: ternary_ops.nn may itself be what imports this package
from ternary_ops.quantize.ternarize import per_filter
from ternary_ops.quantize.trace import fused_chain, is_layer, module_of, trace
from ternary_ops.signature import Signature
from ternary_ops.wrappers import unwrap

_log = logging.getLogger(__name__)
_TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def fold_batchnorm_(model: nn.Module, signature: Signature | None = None) -> list[str]:
    """Fold each BatchNorm that alone follows a Conv2d or Linear, float or quantized, in place.

    The BatchNorm becomes nn.Identity; returns the names of those folded and appends them to
    `model._tops_folded`. What is computed is that of eval mode. Ternary codes keep their zeros and
    change sign where gamma is negative; a filter whose gamma is (nearly) zero becomes empty. Where
    rounding or a threshold over the whole layer would move codes, the layer is frozen first.
    signature: how the model is called, where that is not with one tensor. Raises UnsupportedModel
    when the model cannot be traced.
    """
    model = unwrap(model)
    graph = trace(model, signature=signature).graph
    calls = Counter(id(module_of(n)) for n in graph.nodes if n.op == "call_module")
    folded = []
    for node in list(graph.nodes):
        layer = module_of(node)
        batchnorm = fused_chain(node).batchnorm if is_layer(node) else None
        norm = None if batchnorm is None else module_of(batchnorm)
        if layer is None or norm is None or batchnorm is None or not _foldable(layer):
            continue
        if calls[id(layer)] > 1 or calls[id(norm)] > 1:
            _log.info("%s not folded: it or its layer runs more than once", batchnorm.target)
            continue
        _fold(str(node.target), layer, norm)
        _replace(model, batchnorm)
        folded.append(str(batchnorm.target))
    names: Any = getattr(model, "_tops_folded", [])
    model._tops_folded = [*names, *folded]  # type: ignore[assignment]  # a plain attribute
    return folded


def _foldable(layer: nn.Module) -> bool:
    return isinstance(layer, tnn.TernaryLayer) or type(layer) in (nn.Conv2d, nn.Linear)


def _fold(name: str, layer: nn.Module, norm: nn.Module) -> None:
    """weight *= g and bias = (bias - mean) * g + beta, with g = gamma / sqrt(var + eps)."""
    mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    gain = (var + cast(float, norm.eps)).rsqrt()
    if norm.weight is not None:
        gain = gain * cast(Tensor, norm.weight).double()
    weight, bias = cast(nn.Parameter, layer.weight), cast("nn.Parameter | None", layer.bias)
    start = torch.zeros_like(mean) if bias is None else bias.double()
    shift = (start - mean) * gain
    if norm.bias is not None:
        shift = shift + cast(Tensor, norm.bias).double()
    # Below the normal numbers a product loses its bits, and with them the codes: such a filter
    # adds nothing that float32 could tell from its bias.
    if weight.numel():
        peak = weight.double().abs().flatten(1).amax(1) * gain.abs()
        gain = torch.where(peak < _TINY, 0.0, gain)
    if isinstance(layer, tnn.TernaryLayer):
        _scale_ternary(name, layer, gain)
    else:
        weight.copy_(weight.double() * per_filter(gain, weight))
    if bias is None:
        layer.bias = nn.Parameter(shift.to(weight.dtype))
    else:
        bias.copy_(shift)


def _scale_ternary(name: str, layer: tnn.TernaryLayer, gain: Tensor) -> None:
    """Scale the latent weight; the codes must follow by their sign alone."""
    layer.settle()
    weight, sign = layer.weight, per_filter(gain.sign().to(torch.int8), layer.weight)
    codes = layer.integer_weight()[0] * sign
    scaled = weight.double() * per_filter(gain, weight)
    if layer.phase != "frozen" and layer.config.weights == "ternary":
        kept = weight.detach().clone()
        weight.copy_(scaled)
        if torch.equal(layer.integer_weight()[0], codes):
            return
        if layer.phase == "float":
            return
        weight.copy_(kept)
        layer.phase = "frozen"
        _log.info("%s frozen: folding would have moved some of its codes", name)
    weight.copy_(scaled)
    if layer.phase == "frozen":
        layer.codes.copy_(codes)


def _replace(model: nn.Module, node: fx.Node) -> None:
    parent, _, child = str(node.target).rpartition(".")
    model.get_submodule(parent)._modules[child] = nn.Identity()
