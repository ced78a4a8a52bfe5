# SPDX-License-Identifier: Apache-2.0
"""quantize_: float layers become trainable ones. pack_: trainable layers become packed ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, check_type, need
from ternary_ops.graph.changes import Changes
from ternary_ops.graph.fold_batchnorm import find_pairs, fold_pairs_
from ternary_ops.graph.replace import replace_modules
from ternary_ops.graph.trace import OutsideTree, TraceFailed
from ternary_ops.graph.usage import Usage, eval_graph, idle_layers
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.planned import check_finished, listed, warn_of_zeros
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.quantize.planned_layers import replace_planned
from ternary_ops.quantize.plans import check_finite, plan

_log = logging.getLogger(__name__)


def quantize_(model: nn.Module, plan_or_config: Plan | TernaryConfig | None = None) -> Plan:
    """Replace layers by TernaryLinear and TernaryConv2d in place, as planned; returns the plan.

    The new layers hold the same parameter objects, so an existing optimizer keeps working, and
    start in phase "ternary" with no input range. A subclass that puts zeros around its image, or
    computes its weight from its parameters, is replaced as well; a computed weight becomes a
    parameter with the value it has in eval mode. A second call changes nothing. All new layers are
    made before the first one is replaced. Raises UnsupportedModel for the plan of another model.

    >>> _ = tops.quantize_(model, tops.TernaryConfig(zeros=0.9))
    >>> type(model.conv1).__name__, model.conv1.config.weights
    ('TernaryConv2d', 'int8')
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        _log.warning(
            "DistributedDataParallel does not know the parameters that quantize_ adds, learned "
            "ranges: wrap the network again, or they differ between processes"
        )
    model = unwrap(model)
    if plan_or_config is not None:
        do = "Pass what plan(model) returned, or a TernaryConfig."
        check_type("plan_or_config", plan_or_config, (Plan, TernaryConfig), do)
    chosen = plan_or_config if isinstance(plan_or_config, Plan) else plan(model, plan_or_config)
    replace_planned(model, chosen)
    return chosen


def pack_(
    model: nn.Module, *, allow_unfinished: bool = False, example: Tensor | None = None
) -> nn.Module:
    """Replace trainable layers by packed ones in place, for inference; returns the model.

    BatchNorm is folded first where the model can be traced (names in `model._tops_folded`). Layers
    with TTQ scales get one scale per filter; `model._tops_refit` holds the relative
    change of each one's weights, which is also logged. Packing again changes nothing. A layer that
    does not run in eval mode, such as a head for training, keeps a float input; a warning names it,
    and layers with fewer zeros than planned.

    allow_unfinished: pack the current codes even if a Pruner has not reached its freeze.
    example: an input, for networks whose code decides on sizes: without one their BatchNorm stays.

    Raises UnsupportedModel without quantized layers or, naming all of them, when layers are still
    being pruned, when layers with uint8 activations have no input range, when a hook or a
    parametrization computes a layer's weight, or the model's code reads it without a call of the
    layer; BadWeights when a weight is not finite. Before any of these nothing is changed.

    >>> _ = tops.quantize_(model, tops.TernaryConfig("int8"))
    >>> tops.calibrate(model, [x])
    >>> type(tops.pack_(model).conv1).__name__
    'PackedConv2d'
    """
    given, model = model, unwrap(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, tnn.TernaryLayer)}
    if not layers:
        if any(isinstance(m, (tnn.PackedLinear, tnn.PackedConv2d)) for m in model.modules()):
            return given
        do = "Call quantize_ first."
        raise UnsupportedModel(need("quantized layers to pack", "none", do))
    graph = None
    try:
        graph = eval_graph(model, example)
    except TraceFailed as error:
        if isinstance(error, OutsideTree):
            Usage(model, outside=[error.module]).check_replaced(layers)
        _log.warning("BatchNorm stays as it is, the model cannot be traced: %s", error)
    _check_packable(layers, Changes(model, graph), idle_layers(layers, graph))
    check_finished(layers, allow_unfinished)
    for name, layer in layers.items():
        check_finite(layer, name)
    pairs = [] if graph is None else find_pairs(model, graph)
    warn_of_zeros(layers)
    refit = {
        name: layer.fold_scales() for name, layer in layers.items() if layer.ttq_scales is not None
    }
    model._tops_refit = refit  # type: ignore[assignment]  # a plain attribute
    for name, change in refit.items():
        _log.warning("%s: one scale per filter changes the weights by %.1f %%", name, 100 * change)
    fold_pairs_(model, pairs)
    replace_modules(model, {layer: _packed(layer) for layer in layers.values()})
    return given


def _packed(layer: tnn.TernaryLayer) -> tnn.PackedLayer:
    if isinstance(layer, tnn.TernaryConv2d):
        made: tnn.PackedLayer = tnn.PackedConv2d.from_layer(layer)
    elif isinstance(layer, tnn.TernaryLinear):
        made = tnn.PackedLinear.from_layer(layer)
    else:
        raise TypeError(f"no packed form of {type(layer).__name__}")  # unreachable: these are all
    made.cost = layer.cost
    return made


def _check_packable(
    layers: Mapping[str, tnn.TernaryLayer], changes: Changes, idle: Sequence[str]
) -> None:
    """Raise UnsupportedModel for layers that packed ones cannot replace."""
    against: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if why := changes.why_not(layer, "pack"):
            against.setdefault(why, []).append(name)
    if against:
        got = "; ".join(f"{listed(names)}: {why}" for why, names in against.items())
        do = "Change these layers, or leave them out of the plan (skip)."
        raise UnsupportedModel(need("layers that compute by their type", got, do))
    unset = [
        name
        for name, layer in layers.items()
        if layer.config.integer_input and layer.input_params() is None
    ]
    names = [name for name in unset if name not in idle]
    if names:
        raise UnsupportedModel(
            need(
                "input ranges of all layers with uint8 activations to pack",
                f"none for {', '.join(names)}",
                'Call calibrate(model, batches), or plan with activations="float32".',
            )
        )
    if unset:
        _log.warning("not run in eval mode, packed with a float input: %s", ", ".join(unset))
    fine = [name for name, layer in layers.items() if layer.config.activations == "uint11"]
    if fine:
        do = "Use tops.compile, which runs them."
        raise UnsupportedModel(
            need("uint8 or float activations in packed layers", ", ".join(fine), do)
        )
