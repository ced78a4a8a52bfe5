# SPDX-License-Identifier: Apache-2.0
"""Channels that can go without a loss: constant ones go into biases, equal ones into each other.

Both functions move what a channel contributes to where it stays, zero the weights that read it, and
say which channels are left: the network computes what it did, and `prune.remove_` takes the others.

    kept = prune.fold_constants_(model, example, batches)
    prune.remove_(model, example, kept)

Units that are nearly constant, or nearly equal, are the criteria "output variance" and "similarity"
of Hoefler et al. 2021 (arXiv 2102.00554); the latter after Srinivas & Babu 2015 (arXiv 1507.06149).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.graph.nodes import is_ours
from ternary_ops.nn.geometry import edges_of
from ternary_ops.prune.filter_activity import Read, by_channel, given, watching
from ternary_ops.prune.filter_network import FilterNetwork
from ternary_ops.prune.filters import FilterGroup, Place
from ternary_ops.prune.layer_matrix import plain_form

_log = logging.getLogger(__name__)


@torch.no_grad()
def fold_constants_(
    model: nn.Module, example: Any, batches: Any, tolerance: float = 0.0
) -> dict[str, Tensor]:
    """Fold what channels that are constant on these batches add into the biases of the layers that
    read them, in place. Returns, for `remove_`, what is left of the groups that have some.

    A channel is constant if, wherever a layer reads it in eval mode, its largest and its smallest
    number differ by at most `tolerance` times the largest number of that input. Where a convolution
    pads with zeros another constant than 0 counts only if the weights that read it are 0 wherever
    they may meet the border, such as all but the middle of 3x3: what such a channel adds differs at
    the border, and a bias does not. A warning names channels that stay for that.
    Layers without a bias get one. Raises BadConfig for a negative tolerance, UnsupportedModel for
    quantized layers.
    """
    network = _network(model, example, tolerance)
    free = network.groups.free
    low: dict[Read, Tensor] = {}
    high: dict[Read, Tensor] = {}
    largest: dict[Read, float] = {}

    def look(layer: Any, x: Tensor, reads: Sequence[Read]) -> None:
        values = by_channel(layer, x)
        ends = values.amin(1), values.amax(1)
        for read in reads:
            at = torch.from_numpy(read[1].positions).to(values.device)
            low[read] = torch.minimum(low.get(read, ends[0][at]), ends[0][at])
            high[read] = torch.maximum(high.get(read, ends[1][at]), ends[1][at])
            largest[read] = max(largest.get(read, 0.0), float(values.abs().max()))

    with watching(network.model, free, look):
        for x, _ in given(network.model, batches, "fold_constants_"):
            network.model(x)
    kept: dict[str, Tensor] = {}
    for group in free:
        reads = [read for read in low if read[0] is group]
        constant = torch.full((group.width,), bool(reads))
        for read in reads:
            constant &= (high[read] - low[read] <= tolerance * largest[read]).all(1).cpu()
        for read in reads:
            peak = torch.maximum(high[read].abs(), low[read].abs()).amax(1).cpu()
            zero = peak <= tolerance * largest[read]
            constant &= _foldable(network.model, read, constant, zero)
        for channel in _given_up(group, constant, kept):
            for read in reads:
                value = (low[read][channel] + high[read][channel]) / 2
                _into_bias(network.model.get_submodule(read[1].layer), read[1], channel, value)
    return kept


@torch.no_grad()
def merge_similar_(model: nn.Module, example: Any, tolerance: float = 0.0) -> dict[str, Tensor]:
    """Merge channels that are made alike, in place: the weights that read one are added to those
    that read the other. Returns, for `remove_`, what is left of the groups that have some.

    Two channels are alike if in every tensor that makes them (filters, biases, norms, slopes) their
    parts differ, in L2 norm, by at most `tolerance` times the larger part. Of several alike the
    first stays. With tolerance 0 the network computes what it did.
    Raises BadConfig for a negative tolerance, UnsupportedModel for quantized layers.
    """
    network = _network(model, example, tolerance)
    kept: dict[str, Tensor] = {}
    for group in network.groups.free:
        into = _partners(network.model, group, tolerance)
        goes = torch.tensor([partner != channel for channel, partner in enumerate(into)])
        for channel in _given_up(group, goes, kept):
            for place in group.places:
                if place.role == "consumer":
                    layer = network.model.get_submodule(place.layer)
                    ours, theirs = place.positions[channel], place.positions[into[channel]]
                    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
                        column, other = _column(layer, place, a), _column(layer, place, b)
                        other.add_(column)
                        column.zero_()
    return kept


def _network(model: nn.Module, example: Any, tolerance: float) -> FilterNetwork:
    check_type("tolerance", tolerance, (int, float), "0 takes exact ones alone, 0.05 near ones.")
    if not tolerance >= 0:
        raise BadConfig(need("tolerance >= 0", tolerance, "0 takes exact ones alone."))
    network = FilterNetwork(model, example)
    if any(is_ours(module) for module in network.model.modules()):
        do = "Fold and merge first, then plan and quantize_."
        raise UnsupportedModel(need("a float network", "quantized layers", do))
    return network


def _given_up(group: FilterGroup, goes: Tensor, kept: dict[str, Tensor]) -> list[int]:
    """The channels that go, at least one of the group staying; others are noted in `kept`."""
    goes = goes.clone()
    if bool(goes.all()):
        goes[0] = False
    if bool(goes.any()):
        kept[group.name] = (~goes).nonzero().flatten()
    found: list[int] = goes.nonzero().flatten().tolist()
    return found


def _foldable(model: nn.Module, read: Read, constant: Tensor, zero: Tensor) -> Tensor:
    """Which constant channels a reader's bias can stand for, bool [width]; zero: which are 0. A
    warning names the others.
    """
    group, place = read
    layer: Any = model.get_submodule(place.layer)
    plain = plain_form(layer)
    found = constant.clone()
    for channel in constant.nonzero().flatten().tolist():
        columns = [_column(layer, place, at) for at in place.positions[channel].tolist()]
        alone = all(_adds_a_constant(plain, column) for column in columns)
        found[channel] = bool(zero[channel]) or alone
    stay = (constant & ~found).nonzero().flatten().tolist()
    if stay:
        why = "has a forward of its own" if plain is None else "pads with zeros"
        _log.warning("constant channels %s of %s stay: %s %s", stay, group.name, place.layer, why)
    return found


def _adds_a_constant(plain: Any, column: Tensor) -> bool:
    """True if a layer adds the same at every place for a channel of equal numbers, read by these
    weights [O, ...]: none of them but 0 ever meets a border of zeros.
    """
    if isinstance(plain, nn.Linear):
        return True
    if plain is None or isinstance(plain, nn.ConvTranspose2d):
        return False
    if plain.padding_mode != "zeros":
        return True
    edges = edges_of(plain)
    if edges == "same":  # as much as the filter spans, at the most
        spans = [d * (k - 1) for d, k in zip(plain.dilation, plain.kernel_size, strict=True)]
        edges = spans[1], spans[1], spans[0], spans[0]
    ends = (edges[2:], edges[:2])
    for axis, (before, after) in enumerate(ends, 1):
        taps = torch.arange(column.shape[axis], device=column.device) * plain.dilation[axis - 1]
        outside = (taps < before) | (taps.flip(0) < after)
        if bool(column.index_select(axis, outside.nonzero().flatten()).any()):
            return False
    return True


def _column(layer: Any, place: Place, position: int) -> Tensor:
    """The weights that read one input channel, a view."""
    weight: Tensor = layer.weight.detach()
    ((_, axis),) = place.tensors
    if place.parts_along(axis) == 1:
        return weight.select(axis, position)
    each, rows = weight.shape[1], weight.shape[0] // place.parts
    part, at = divmod(position, each)
    return weight[part * rows : (part + 1) * rows, at]


def _into_bias(layer: Any, place: Place, channel: int, values: Tensor) -> None:
    """Add what a constant channel, one value a copy, contributes; zero the weights that read it."""
    for position, value in zip(place.positions[channel].tolist(), values, strict=True):
        column = _column(layer, place, position)
        if float(value):
            if layer.bias is None:
                outputs = layer.weight.new_zeros(layer.weight.shape[0])
                layer.bias = nn.Parameter(outputs, layer.weight.requires_grad)
            rows = layer.bias.detach()
            if place.parts > 1:
                each, count = layer.weight.shape[1], layer.weight.shape[0] // place.parts
                first = position // each * count
                rows = rows[first : first + count]
            rows.add_(column.flatten(1).sum(1) if column.ndim > 1 else column, alpha=float(value))
        column.zero_()


def _partners(model: nn.Module, group: FilterGroup, tolerance: float) -> list[int]:
    """For each channel the first one that is like it, itself if none is."""
    labels = torch.from_numpy(group.labels)
    alike = labels[:, None] == labels[None]
    for rows in _made_of(model, group):
        distance = _distances(rows)
        norms = rows.norm(dim=1)
        alike &= (distance <= tolerance * torch.maximum(norms[:, None], norms[None])).cpu()
    found: list[int] = []
    for channel in range(group.width):
        near = [i for i in alike[channel, :channel].nonzero().flatten().tolist() if found[i] == i]
        found.append(near[0] if near else channel)
    return found


def _distances(rows: Tensor) -> Tensor:
    """[width, width]; exactly 0 for equal rows, which cdist by products is not."""
    made: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return made


def _made_of(model: nn.Module, group: FilterGroup) -> list[Tensor]:
    """Of each tensor that makes channels or runs along them, their parts: float64 [width, d]."""
    found = []
    for place in group.places:
        if place.role == "consumer":
            continue
        layer = model.get_submodule(place.layer)
        for name, axis in place.tensors:
            tensor: Tensor = getattr(layer, name).detach().double()
            parts = place.parts_along(axis)
            if parts > 1:
                rows = tensor.view(parts, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 1)
            else:
                rows = tensor.movedim(axis, 0)
            at = torch.from_numpy(place.positions).to(tensor.device)
            found.append(rows.flatten(1)[at].flatten(1) if rows.ndim > 1 else rows[at])
    return found
