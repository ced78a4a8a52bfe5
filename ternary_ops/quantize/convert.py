# SPDX-License-Identifier: Apache-2.0
"""quantize_: float layers become trainable ones. pack_: trainable layers become packed ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

import ternary_ops.nn as tnn  # by module: ternary_ops.nn may itself be what imports this package
from ternary_ops.errors import UnsupportedModel, check_type, need
from ternary_ops.quantize.config import TernaryConfig
from ternary_ops.quantize.fold import fold_batchnorm_
from ternary_ops.quantize.observed import travel_in_state
from ternary_ops.quantize.plan import Plan, check_finite, plan, weight_shape
from ternary_ops.wrappers import unwrap

_log = logging.getLogger(__name__)
# What nn.Module keeps of the hooks that users registered on it.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def quantize_(model: nn.Module, plan_or_config: Plan | TernaryConfig | None = None) -> Plan:
    """Replace layers by TernaryLinear and TernaryConv2d in place, as planned; returns the plan.

    The new layers hold the same parameter objects, so that an optimizer made before goes on, and
    start in phase "ternary" with no input range. A second call changes nothing. Every new layer is
    made before the first is put in place. Raises UnsupportedModel for the plan of another model.
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
    modules = dict(model.named_modules())
    new: dict[nn.Module, nn.Module] = {}
    for row in chosen:
        module = modules.get(row.name)
        shape = weight_shape(module)
        if module is None or shape != row.shape:
            raise UnsupportedModel(
                need(
                    f"the plan has a {row.type} {row.name!r} of shape {list(row.shape)}",
                    "no such layer here" if module is None else list(shape),
                    "Make the plan from this model.",
                )
            )
        if row.config is None or isinstance(module, tnn.TernaryLayer):
            continue
        if type(module) is nn.Linear:
            new[module] = tnn.TernaryLinear.from_float(module, row.config)
        elif type(module) is nn.Conv2d:
            new[module] = tnn.TernaryConv2d.from_float(module, row.config)
        else:
            raise UnsupportedModel(
                need(
                    f"the plan has a {row.type} {row.name!r}",
                    type(module).__name__,
                    "Make the plan from this model.",
                )
            )
    replace_modules(model, new)
    travel_in_state(model)
    return chosen


def pack_(model: nn.Module) -> nn.Module:
    """Replace trainable layers by packed ones in place, for inference; returns the model.

    BatchNorm is folded first where the model can be traced (names in `model._tops_folded`). Layers
    with learned poles ("ttq") get one scale per filter; `model._tops_refit` holds the relative
    change of each one's weights, which is logged too. Packing again changes nothing.

    Raises UnsupportedModel without quantized layers or, naming all of them, when layers with uint8
    activations have no input range; BadWeights when a weight is not finite.
    Before any of these nothing is changed.
    """
    given, model = model, unwrap(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, tnn.TernaryLayer)}
    if not layers:
        if any(isinstance(m, (tnn.PackedLinear, tnn.PackedConv2d)) for m in model.modules()):
            return given
        do = "Call quantize_ first."
        raise UnsupportedModel(need("packing needs quantized layers", "none", do))
    unset = [
        name
        for name, layer in layers.items()
        if layer.config.integer_input and layer.input_params() is None
    ]
    if unset:
        raise UnsupportedModel(
            need(
                "packing layers with uint8 activations needs their input ranges",
                f"none for {', '.join(unset)}",
                'Call calibrate(model, batches), or plan with activations="float32".',
            )
        )
    fine = [name for name, layer in layers.items() if layer.config.activations == "uint11"]
    if fine:
        do = "Use tops.compile, which runs them."
        raise UnsupportedModel(need("packed layers read uint8 or floats", ", ".join(fine), do))
    for name, layer in layers.items():
        check_finite(layer, name)
    refit = {name: layer.settle() for name, layer in layers.items() if layer.poles is not None}
    model._tops_refit = refit  # type: ignore[assignment]  # a plain attribute
    for name, change in refit.items():
        _log.warning("%s: one scale per filter changes the weights by %.1f %%", name, 100 * change)
    try:
        fold_batchnorm_(model)
    except UnsupportedModel as error:
        _log.warning("BatchNorm stays as it is, the model cannot be traced: %s", error)
    new: dict[nn.Module, nn.Module] = {}
    for layer in layers.values():
        if isinstance(layer, tnn.TernaryConv2d):
            new[layer] = tnn.PackedConv2d.from_layer(layer)
        elif isinstance(layer, tnn.TernaryLinear):
            new[layer] = tnn.PackedLinear.from_layer(layer)
    replace_modules(model, new)
    return given


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put `new[m]` in the place of m under every name it has; users' hooks move along."""
    for old, layer in new.items():
        for name in _HOOKS:
            layer.__dict__[name] = old.__dict__[name]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its fused path, which this turns off, reads weights instead of calling layers.
                    parent.activation_relu_or_gelu = 0
