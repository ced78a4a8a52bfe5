# SPDX-License-Identifier: Apache-2.0
"""Fold BatchNorm into the layer before it: its statistics become part of scale and bias."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.changes import Changes
from ternary_ops.graph.nodes import fused_chain, is_layer, module_of
from ternary_ops.graph.replace import replace_modules
from ternary_ops.graph.subclass_twins import rest_of, twin_of
from ternary_ops.graph.trace import trace_at
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.planned import listed
from ternary_ops.nn.ternarize import per_filter

_log = logging.getLogger(__name__)
_TINY = torch.finfo(torch.float32).tiny
_ROUNDINGS = 256  # of the float type: what sums of thousands of terms may differ by


@dataclass(frozen=True)
class Pair:
    """A layer, the BatchNorm behind it, what takes the place of both, and their names.

    own: the model's modules of these names, which may be subclasses whose forward calls the two.
    """

    layer: Any
    norm: Any
    folded: Any
    names: tuple[str, str]
    own: tuple[Any, Any]


@torch.no_grad()
def fold_batchnorm_(model: nn.Module, example: Tensor | None = None) -> list[str]:
    """Fold each BatchNorm that alone follows a Conv2d or Linear, float or quantized, in place.

    The BatchNorm becomes nn.Identity; returns the names of those folded and appends them to
    `model._tops_folded`. What is computed is that of eval mode. Ternary codes keep their zeros and
    change sign where gamma is negative; a filter whose gamma is (nearly) zero becomes empty. Where
    rounding or a threshold over the whole layer would move codes, the layer is frozen first.

    A subclass that is a layer or BatchNorm in eval mode, and no more than modules of its own behind
    it, becomes that layer, and those modules.

    A BatchNorm stays where a hook or a parametrization computes the layer's weight, where another
    layer shares it or the model's code reads it, where hooks are registered on either, or the layer
    is of a subclass (`changes.Changes`); a warning names it and says why. It stays as well where it
    or its layer runs more than once.

    example: an input, for networks whose code decides on sizes.

    Every folded layer is compared with the layer and BatchNorm it replaces before anything is
    written. Raises UnsupportedModel when the model cannot be traced or they differ; the model is
    then as it was.
    """
    model = unwrap(model)
    pairs = find_pairs(model, trace_at(model, example).graph)
    fold_pairs_(model, pairs)
    return [pair.names[1] for pair in pairs]


@torch.no_grad()
def find_pairs(model: nn.Module, graph: fx.Graph) -> list[Pair]:
    """Pairs that fold_batchnorm_ would fold, compared; `graph` is a trace of the model."""
    calls = Counter(id(module_of(n)) for n in graph.nodes if n.op == "call_module")
    changes = Changes(model, graph)
    pairs, left = [], _Left()
    for node in graph.nodes:
        layer = module_of(node)
        if not (is_layer(node) or isinstance(layer, (nn.Conv2d, nn.Linear))):
            continue
        chain = fused_chain(node)
        batchnorm = chain.batchnorm
        if batchnorm is None or isinstance(layer, tnn.PackedLayer):
            continue
        norm = module_of(batchnorm)
        if calls[id(layer)] > 1 or calls[id(norm)] > 1:
            _log.info("%s not folded: it or its layer runs more than once", batchnorm.target)
            continue
        reasons = changes.against_fusing(chain)
        if reasons:
            left.add(str(batchnorm.target), reasons)
            continue
        names = str(node.target), str(batchnorm.target)
        own = changes.own(node), changes.own(batchnorm)
        pairs.append(Pair(layer, norm, _folded(layer, norm, names), names, own))
    left.warn()
    return pairs


class _Left:
    """BatchNorms that are not folded, with the names of the modules that are why, by reasons."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], tuple[list[str], list[list[str]]]] = {}

    def add(self, norm: str, reasons: list[tuple[str, str]]) -> None:
        names, whys = zip(*reasons, strict=True)
        norms, causes = self._found.setdefault(whys, ([], [[] for _ in whys]))
        norms.append(norm)
        for cause, name in zip(causes, names, strict=True):
            cause.append(name)

    def warn(self) -> None:
        """One warning for all of them."""
        texts = []
        for whys, (norms, causes) in self._found.items():
            why = "; ".join(f"{listed(c)}: {w}" for c, w in zip(causes, whys, strict=True))
            texts.append(f"{listed(norms)} {'is' if len(norms) == 1 else 'are'} not folded: {why}")
        if texts:
            _log.warning("%s", "\n".join(texts))


@torch.no_grad()
def fold_pairs_(model: nn.Module, pairs: list[Pair]) -> None:
    """Fold what find_pairs returned, in place."""
    new: dict[nn.Module, nn.Module] = {}
    for pair in pairs:
        layer, norm = pair.own
        if layer is not pair.layer and (twin := twin_of(layer)) is not None:
            new[layer] = layer = twin
        _take_over(layer, pair.folded)
        new[norm] = rest_of(norm) or nn.Identity()
    replace_modules(model, new)
    names: Any = getattr(model, "_tops_folded", [])
    folded = [pair.names[1] for pair in pairs]
    model._tops_folded = [*names, *folded]  # type: ignore[assignment]  # a plain attribute


def fold_in_trace_(traced: fx.GraphModule, pairs: list[Pair]) -> None:
    """Fold what find_pairs returned, in the trace alone: the network's layers stay as they are."""
    new: dict[nn.Module, nn.Module] = {}
    for pair in pairs:
        identity = nn.Identity()
        identity._modules.update(pair.norm._modules)  # a trace may have modules under its name
        new.update({pair.layer: pair.folded, pair.norm: identity})
    replace_modules(traced, new)


def _folded(layer: Any, norm: Any, names: tuple[str, str]) -> Any:
    """A copy of the layer with the BatchNorm in it; raises UnsupportedModel unless that does what
    the two do.
    """
    before, after = _copy(layer), _copy(layer)
    if isinstance(before, tnn.TernaryLayer):
        before.fold_scales()  # one scale for a filter: a part of folding that does change values
    _fold(names[0], after, norm)
    if layer.weight.is_meta or not layer.weight.numel():
        return after
    x = _sample(before)
    y, found = _run(before, x), _run(after, x)
    mean, gain = norm.running_mean.double(), _gain(norm)
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    # Rounding of the sums, of the weight and of the bias, each relative to its rounded value.
    largest = gain.abs() * (y.abs().amax(0) + mean.abs()) + beta.abs()
    bound = _ROUNDINGS * torch.finfo(layer.weight.dtype).eps * largest + _TINY
    if bool(((found - ((y - mean) * gain + beta)).abs() > bound).any()):
        raise UnsupportedModel(
            need(
                f"{names[0]} with {names[1]} folded in that computes what both do",
                "another result",
                "Nothing was changed. Report this model; it was misread.",
            )
        )
    return after


def _take_over(layer: Any, folded: Any) -> None:
    """Write what _folded made into the layer; its parameters stay the same objects."""
    quantized = isinstance(layer, tnn.TernaryLayer)
    if quantized:
        layer.fold_scales()
    layer.weight.copy_(folded.weight)
    if layer.bias is None:
        layer.bias = folded.bias
    else:
        layer.bias.copy_(folded.bias)
    if quantized:
        if layer.phase != folded.phase:
            layer.phase = folded.phase
        if layer.phase == "frozen":
            layer.codes.copy_(folded.codes)


def _copy(layer: Any) -> Any:
    """The layer with tensors of its own. Its hooks may hold the whole network: not copied."""
    twin = object.__new__(type(layer))
    parameters = {
        name: None if p is None else nn.Parameter(p.detach().clone(), p.requires_grad)
        for name, p in layer._parameters.items()
    }
    buffers = {name: None if b is None else b.clone() for name, b in layer._buffers.items()}
    twin.__dict__.update(layer.__dict__, _parameters=parameters, _buffers=buffers)
    return twin


def _sample(layer: Any) -> Tensor:
    """A random input of the layer: [2, K], or [2, C, H, W] of two windows and the padding."""
    shape: tuple[int, ...] = (2, layer.weight.shape[1])
    if hasattr(layer, "kernel_size"):
        more = 0 if isinstance(layer.padding, str) else max(layer.padding)
        spans = zip(layer.dilation, layer.kernel_size, strict=True)
        shape = (2, layer.in_channels, *(2 * d * k + more for d, k in spans))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)


def _run(layer: Any, x: Tensor) -> Tensor:
    """The layer's output, float64 [samples, O], without its hooks."""
    y: Tensor = layer.forward(x).double()
    return y.movedim(1, -1).flatten(0, -2)


def _gain(norm: Any) -> Tensor:
    """gamma / sqrt(var + eps), float64 [O]."""
    gain: Tensor = (norm.running_var.double() + norm.eps).rsqrt()
    return gain if norm.weight is None else gain * norm.weight.double()


def _fold(name: str, layer: Any, norm: Any) -> None:
    """weight *= gain and bias = (bias - mean) * gain + beta."""
    gain, weight, bias = _gain(norm), layer.weight, layer.bias
    mean = norm.running_mean.double()
    start = torch.zeros_like(mean) if bias is None else bias.double()
    shift = (start - mean) * gain
    if norm.bias is not None:
        shift = shift + norm.bias.double()
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
    layer.fold_scales()
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
        layer.codes = codes
    elif layer.phase == "ternary":
        # 8 bits: a weight half way between two codes may have gone to the other one.
        rounded, scale = layer.integer_weight()
        middle = (codes * per_filter(scale, codes)).to(weight.dtype)
        weight.copy_(torch.where(rounded == codes, weight, middle))
