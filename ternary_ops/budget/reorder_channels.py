# SPDX-License-Identifier: Apache-2.0
"""Channel reordering before pruning by quads, so that large weights share quads.

A quad survives by the sum of its four magnitudes. Which channels are four neighbors is free, so
channels that are large at the same places (Gram matrix of the magnitudes) go into one quad: more
magnitude is left at the same share of zeros. The idea is that of channel permutation for 2:4
sparsity, Pool and Yu 2021 (NeurIPS); objective and search are ours.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.compiler import compile  # noqa: A004
from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.graph.changes import Changes
from ternary_ops.graph.nodes import fused_chain, is_layer, layer_class, module_of
from ternary_ops.graph.signature import result
from ternary_ops.graph.trace import trace_at
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.program import column_grouping
from ternary_ops.program.channels import channel_groups
from ternary_ops.program.permute import apply_order, by_channel, movable_groups
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.plans import plan

# Outputs may differ by the rounding of sums in another order, relative to the largest.
_ROUNDING = 1e-3


class ReorderRow(NamedTuple):
    """A layer that reads reordered channels: the fraction of its magnitude that the best quarter of
    its quads holds, before and after.
    """

    name: str
    before: float
    after: float


@torch.no_grad()
def reorder_channels_(model: nn.Module, example_input: Tensor) -> list[ReorderRow]:
    """Reorder the inner channels of a float network in place, so that large weights share quads.

    Call it before quantize_. The network computes the same up to the order of float additions;
    earlier state dicts no longer fit. Channels tied by skip connections get one order; input,
    output and channels that not all their layers can reorder keep theirs. Deterministic.
    example_input: as for compile. Returns a row per layer that reads reordered channels.

    Raises BadConfig for quantized layers, and UnsupportedModel, with the model as it was, if it has
    no program form, or a layer to reorder has hooks or a weight recomputed at every call.
    """
    model = unwrap(model)
    if any(hasattr(m, "phase_code") for m in model.modules()):
        do = "Call reorder_channels_ on the float network, then quantize_."
        raise BadConfig(
            need(
                "a float network (channels are reordered before quantize_)", "quantized layers", do
            )
        )
    graph = _integer_graph(model, example_input)
    groups = channel_groups(graph)
    weights = []
    fixed = _shared_or_strange(model, graph.weights)
    for w in graph.weights:
        # Numbers of input channels and of filters: after apply_order they say what moved.
        numbers = np.broadcast_to(np.arange(w.shape[3], dtype=np.float32), w.shape)
        filters = np.arange(w.shape[0], dtype=np.float32)
        weights.append(replace(w, kind="float", values=numbers, scale=None, bias=filters))
    for i, node in enumerate(graph.nodes):
        if "w" in node.attrs and graph.weights[node.attrs["w"]].name in fixed:
            for value in (i, *node.inputs):
                groups.fix(value, "the network has no module of its own for it", "order")
    read: set[str] = set()
    for group in movable_groups(graph, groups):
        names = [
            graph.weight(node).name
            for node in graph.nodes
            if node.operator.is_layer and node.inputs[0] in group.positions
        ]
        order = _best_order([_filters(model, name) for name in names], group.labels)
        if order is not None:
            apply_order(group, order, weights)
            read |= set(names)
    return _move_checked(model, example_input, weights, read, fixed)


def _integer_graph(model: nn.Module, example_input: Tensor) -> Any:
    """A program of the network in which every layer reads integers: floats would be pinned."""
    trial = copy_of(model).cpu().float().eval()
    quantize_(trial, plan(trial, TernaryConfig("int8")))
    calibrate(trial, [example_input])
    return compile(trial, example_input[:1]).graph


def _shared_or_strange(model: nn.Module, weights: tuple[Any, ...]) -> set[str]:
    """Names whose values cannot be moved in `model`, one module for one weight."""
    modules = dict(model.named_modules())
    owners = Counter(id(t) for m in model.modules() for t in _tensors(m))
    listed = Counter(w.name for w in weights)
    fixed = set()
    for w in weights:
        module = modules.get(w.name)
        alone = module is not None and all(owners[id(t)] == 1 for t in _tensors(module))
        if not alone or listed[w.name] > 1 or not _fits(cast(nn.Module, module), w.shape):
            fixed.add(w.name)
    return fixed


def _fits(module: nn.Module, shape: tuple[int, int, int, int]) -> bool:
    o, r, s, i = shape
    if layer_class(module) is nn.Linear:
        return cast(Tensor, module.weight).shape == (o, i) and r == s == 1
    if layer_class(module) is nn.Conv2d:
        return cast(Tensor, module.weight).shape == (o, i, r, s)
    return shape == (o, 1, 1, 1) and all(t.numel() in (1, o) for t in _tensors(module))


def _tensors(module: nn.Module) -> list[Tensor]:
    own = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in own if tensor is not None]


def _filters(model: nn.Module, name: str) -> NDArray[Any] | None:
    """Magnitudes [O, R, S, I] of a convolution or linear layer, None of anything else."""
    module = model.get_submodule(name)
    if layer_class(module) not in (nn.Conv2d, nn.Linear):
        return None
    weight = cast(Tensor, module.weight).detach().abs().double().cpu()
    if weight.ndim == 2:
        return weight[:, None, None].numpy()
    return weight.permute(0, 2, 3, 1).numpy()


def _best_order(layers: list[NDArray[Any] | None], labels: NDArray[Any]) -> NDArray[Any] | None:
    likeness = np.zeros((len(labels), len(labels)))
    for filters in layers:
        rows = None if filters is None else by_channel(filters, len(labels))
        if rows is not None and rows.any():
            likeness += rows.T @ rows / np.square(rows).mean()
    order = column_grouping.strongest_fours(likeness, list(labels))
    return None if np.array_equal(order, np.arange(len(labels))) else order


def _move_checked(
    model: nn.Module, x: Tensor, weights: list[Any], read: set[str], fixed: set[str]
) -> list[ReorderRow]:
    norms = _norms_behind(model, x, {w.name for w in weights})
    moved = [w for w in weights if w.name not in fixed and _moves(w)]
    names = [name for w in moved for name in (w.name, norms.get(w.name)) if name is not None]
    Changes(model).check([model.get_submodule(name) for name in names], "rewrite", "reordered")
    training = model.training
    kept = copy.deepcopy(model.state_dict())
    expected = result(model.eval(), x)
    rows = []
    for w in (w for w in weights if w.name not in fixed):
        before = _best_quarter(_filters(model, w.name))
        _move(model, w, norms.get(w.name))
        if w.name in read and before is not None:
            after = _best_quarter(_filters(model, w.name))
            rows.append(ReorderRow(w.name, before, cast(float, after)))
    found = result(model, x)
    model.train(training)
    if float((found - expected).abs().max()) > _ROUNDING * float(expected.abs().max()):
        model.load_state_dict(kept)
        what = "a reordered network that computes what it did"
        raise UnsupportedModel(need(what, "another output", "Report this model; it was misread."))
    return rows


def _moves(w: Any) -> bool:
    """True if the order of input channels or filters is not the identity."""
    still = np.array_equal(w.array, np.broadcast_to(np.arange(w.shape[3]), w.shape))
    return not (still and np.array_equal(w.bias, np.arange(w.shape[0])))


def _norms_behind(model: nn.Module, x: Tensor, known: set[str]) -> dict[str, str]:
    """Layer -> the BatchNorm that folds into it, where that is no weight of the program itself."""
    found = {}
    for node in trace_at(copy_of(model), x).graph.nodes:
        norm = fused_chain(node).batchnorm if is_layer(node) else None
        if norm is not None and module_of(norm) is not None and str(norm.target) not in known:
            found[str(node.target)] = str(norm.target)
    return found


def _move(model: nn.Module, w: Any, norm: str | None) -> None:
    """Give the module of w, and the BatchNorm behind it, the order that w's numbers have."""
    filters = torch.from_numpy(w.bias.astype(np.int64))
    inputs = torch.from_numpy(w.array.astype(np.int64))
    module = model.get_submodule(w.name)
    if layer_class(module) in (nn.Conv2d, nn.Linear):
        weight, bias = cast(nn.Parameter, module.weight), cast("nn.Parameter | None", module.bias)
        index = inputs.permute(0, 3, 1, 2).reshape(weight.shape).to(weight.device)
        weight.copy_(weight[filters.to(weight.device)].gather(1, index))
        vectors: list[Tensor] = [] if bias is None else [bias]
    else:
        vectors = _tensors(module)
    if norm is not None:
        vectors += _tensors(model.get_submodule(norm))
    for vector in vectors:
        if vector.numel() == len(filters) > 1:
            vector.copy_(vector[filters.to(vector.device)])


def _best_quarter(filters: NDArray[Any] | None) -> float | None:
    if filters is None:
        return None
    padded = np.pad(filters, [(0, 0)] * 3 + [(0, -filters.shape[3] % 4)])
    quads = np.sort(padded.reshape(-1, 4).sum(1))[::-1]
    return float(quads[: max(1, len(quads) // 4)].sum() / max(quads.sum(), 1e-300))
