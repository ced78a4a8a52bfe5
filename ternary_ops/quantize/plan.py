# SPDX-License-Identifier: Apache-2.0
"""What quantize_ would do to each weighted layer of a network, and why. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import ternary_ops.nn as tnn  # by module: ternary_ops.nn may itself be what imports this package
from ternary_ops.errors import BadConfig, BadWeights, check_type, need
from ternary_ops.prune.units import fit_pattern, get_pattern
from ternary_ops.quantize.config import TernaryConfig
from ternary_ops.table import Table
from ternary_ops.wrappers import unwrap

if TYPE_CHECKING:
    from ternary_ops.quantize.allocate import Budget

_COLUMNS = ("name", "type", "shape", "action", "pattern", "reason")


@dataclass(frozen=True)
class PlanRow:
    """One weighted layer. `action`: "ternary", "int8", "float" (by config), "skip" (see reason)."""

    name: str
    type: str
    shape: tuple[int, ...]
    action: str
    pattern: str  # "" unless ternary, or 8 bits with zeros
    reason: str
    config: TernaryConfig | None  # what the layer gets; None unless ternary or int8

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        config = None if self.config is None else self.config.to_dict()
        return {**vars(self), "shape": list(self.shape), "config": config}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlanRow:
        """The inverse of to_dict."""
        config = values["config"]
        parsed = None if config is None else TernaryConfig.from_dict(config)
        return cls(**{**values, "shape": tuple(values["shape"]), "config": parsed})


@dataclass(frozen=True)
class Plan:
    """One row per weighted layer, in the order of named_modules(). str() is a table."""

    rows: tuple[PlanRow, ...]

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> PlanRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        cells = [
            (
                row.name,
                row.type,
                "x".join(map(str, row.shape)),
                row.action,
                row.pattern or "-",
                row.reason,
            )
            for row in self.rows
        ]
        return str(Table(_COLUMNS, cells, words=_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"rows": [row.to_dict() for row in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of to_dict."""
        try:
            return cls(tuple(PlanRow.from_dict(row) for row in values["rows"]))
        except (KeyError, TypeError, AttributeError) as error:
            do = "Pass what Plan.to_dict() returned."
            raise BadConfig(need("a plan as plain values", repr(error), do)) from error


def plan(
    model: nn.Module,
    config: TernaryConfig | None = None,
    rules: Mapping[str, TernaryConfig] | None = None,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    *,
    auto: bool = False,
    budget: Budget | None = None,
    batches: Iterable[Any] | None = None,
) -> Plan:
    """Decide for every weighted layer of `model`; nothing is changed.

    By default the first convolution, depthwise convolutions and the last linear layer become dense
    int8 and the rest what `config` says (default TernaryConfig()). `rules` maps globs on layer
    names to configs that override this; the last match counts. `only` and `skip` are globs: what
    is not in `only`, or is in `skip`, is left alone. A layer under several names goes by the first;
    globs may use any of them.

    auto: choose weights (ternary or 8 bits) and zeros of every layer that `config` alone would
    make ternary, so that the compiled network keeps to `budget` (allocate.Budget: ms or bytes) and
    its output changes least. `batches`, as for calibrate, are what it is measured on, one sample of
    them for the time. It takes about a dozen compilations, and one pass over the batches for every
    layer and candidate; 32 to 64 samples are plenty.

    Raises BadConfig when a glob matches no weighted layer, when a rule has no effect because skip
    or only leave out all its layers, when auto lacks budget or batches (or they lack auto), or when
    the budget is too small; BadWeights when a weight is not finite.
    """
    if auto != (budget is not None) or auto != (batches is not None):
        got = f"auto={auto}, budget={budget}, batches={'None' if batches is None else 'given'}"
        do = "Pass auto=True, budget=Budget(ms=2.0), batches=[x]."
        raise BadConfig(need("auto, budget and batches go together", got, do))
    model = unwrap(model)
    config = TernaryConfig() if config is None else config
    _check_types(config, rules, only, skip)
    rules = dict(rules or {})
    chosen, left_out = _globs(only), _globs(skip)
    layers = _weighted_layers(model)
    _check_globs([*rules, *(chosen or ()), *(left_out or ())], layers)
    _check_conflicts(rules, chosen, left_out, layers)
    special = _special_layers(model)
    tied = _tied_weights(layers)
    rows: list[PlanRow] = []
    fixed: set[str] = set()  # ruled or already quantized
    for module, names in layers.items():
        reason = _cannot(module, names[0]) or tied.get(module)
        if reason:
            rows.append(_row(module, names, "skip", reason))
            continue
        if isinstance(module, tnn.TernaryLayer):
            fixed.add(names[0])
            rows.append(
                _row(module, names, module.config.weights, "already quantized", module.config)
            )
            continue
        check_finite(module, names[0])
        ruled = [g for g in rules if _matches(names, g)]
        if left_out and any(_matches(names, g) for g in left_out):
            rows.append(_row(module, names, "skip", "in skip"))
        elif chosen is not None and not any(_matches(names, g) for g in chosen):
            rows.append(_row(module, names, "skip", "not in only"))
        elif ruled:
            fixed.add(names[0])
            rows.append(_planned(module, names, rules[ruled[-1]], f"rule {ruled[-1]!r}"))
        elif module in special and (config.weights == "ternary" or config.zeros > 0):
            dense = replace(config, weights="int8", zeros=0.0)
            rows.append(_planned(module, names, dense, special[module]))
        else:
            rows.append(_planned(module, names, config, ""))
    made = Plan(tuple(rows))
    if budget is None or batches is None:
        return made
    from ternary_ops.quantize.allocate import (
        Budget,
        allocate,
    )  # it compiles, and so imports this module

    check_type("budget", budget, Budget, "Pass Budget(ms=2.0) or Budget(bytes=500_000).")
    free = [row.name for row in rows if row.action == "ternary" and row.name not in fixed]
    if not free:
        do = "Pass a ternary config, or fewer rules."
        raise BadConfig(need("auto needs a layer that is ternary by `config`", "none", do))
    return allocate(model, made, free, batches, budget)


def _check_types(config: object, rules: object, only: object, skip: object) -> None:
    check_type("config", config, TernaryConfig, 'Pass TernaryConfig(weights="int8").')
    if rules is not None:
        check_type("rules", rules, Mapping, "Pass a dict of globs and configs.")
    for glob, rule in rules.items() if isinstance(rules, Mapping) else ():
        check_type(f"the rule {glob!r}", rule, TernaryConfig, "Pass a TernaryConfig.")
    for name, globs in (("only", only), ("skip", skip)):
        if globs is not None:
            check_type(name, globs, (str, Sequence), "Pass a glob, or a list of them.")


def _planned(module: nn.Module, names: list[str], config: TernaryConfig, reason: str) -> PlanRow:
    """The row of a layer whose config is settled, with the pattern it can really take."""
    if config.weights == "float":
        return _row(module, names, "float", reason)
    if config.weights == "int8" and config.zeros == 0:
        return _row(module, names, "int8", reason, config)
    weight, groups = module.weight, getattr(module, "groups", 1)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{names[0]} has no weight tensor")  # unreachable: _cannot refused it
    asked = get_pattern(config.pattern)
    fitted = fit_pattern(asked, weight.shape, groups)
    if fitted != asked:
        config = replace(config, pattern=fitted.name)
        narrow = f"{weight.shape[1]} input channels per group: too narrow for {asked.name}"
        reason = f"{reason}; {narrow}" if reason else narrow
    return _row(module, names, config.weights, reason, config)


def _row(
    module: nn.Module,
    names: list[str],
    action: str,
    reason: str,
    config: TernaryConfig | None = None,
) -> PlanRow:
    if len(names) > 1:
        also = f"also {', '.join(names[1:])}"
        reason = f"{reason}; {also}" if reason else also
    shape = weight_shape(module)
    prunable = config is not None and (action == "ternary" or config.zeros > 0)
    pattern = config.pattern if config is not None and prunable else ""
    return PlanRow(names[0], type(module).__name__, shape, action, pattern, reason, config)


def weight_shape(module: nn.Module | None) -> tuple[int, ...]:
    """The shape of module.weight; () where there is none, or none yet."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and not nn.parameter.is_lazy(weight):
        return tuple(weight.shape)
    return ()


def _weighted_layers(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Modules that own a weight matrix (or could hide one), each with all its names."""
    layers: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = [p for p in module._parameters.values() if p is not None]
        matrix = any(nn.parameter.is_lazy(p) or p.ndim >= 2 for p in own)
        packed = type(module).__name__ in ("PackedLinear", "PackedConv2d")
        if matrix or packed or isinstance(module, (nn.Linear, nn.Conv2d, tnn.TernaryLayer)):
            layers.setdefault(module, []).append(name)
    return layers


def _special_layers(model: nn.Module) -> dict[nn.Module, str]:
    """Layers that the default keeps at 8 bits, with the reason; quantized ones keep their place."""
    convs = [m for m in model.modules() if isinstance(m, (nn.Conv2d, tnn.TernaryConv2d))]
    linears = [m for m in model.modules() if isinstance(m, (nn.Linear, tnn.TernaryLinear))]
    special: dict[nn.Module, str] = {
        m: "depthwise" for m in convs if m.groups == m.in_channels and m.groups > 1
    }
    if convs:
        special[convs[0]] = "first convolution"
    if linears:
        special[linears[-1]] = "last linear layer"
    return special


def _cannot(module: nn.Module, name: str) -> str:
    """Why the layer stays out of quantization whatever the rules say; empty if it need not."""
    kind = type(module)
    weight = module._parameters.get("weight")
    if kind.__name__ in ("PackedLinear", "PackedConv2d"):
        return "already packed"
    if any(p is not None and nn.parameter.is_lazy(p) for p in module._parameters.values()):
        return "not initialized: run the model once first"
    if hasattr(module, "parametrizations"):
        return "parametrized: remove the parametrization first"
    if isinstance(module, (nn.Linear, nn.Conv2d)) and kind not in (nn.Linear, nn.Conv2d):
        return f"a subclass of {kind.__mro__[1].__name__}: its forward may differ"
    if kind not in (nn.Linear, nn.Conv2d) and not isinstance(module, tnn.TernaryLayer):
        return "no ternary twin of this type"
    if weight is None:
        return "weight computed by a hook (weight_norm, torch.nn.utils.prune): remove it first"
    if not weight.is_floating_point():
        return f"weight of dtype {weight.dtype}"
    if not name:
        return "the model is this one layer: wrap it in nn.Sequential"
    return ""


def _tied_weights(layers: dict[nn.Module, list[str]]) -> dict[nn.Module, str]:
    """Layers that share a weight with another: codes and scale of one would change the other."""
    holders: dict[int, list[nn.Module]] = {}
    for module in layers:
        for parameter in module._parameters.values():
            if parameter is not None and (nn.parameter.is_lazy(parameter) or parameter.ndim >= 2):
                holders.setdefault(id(parameter), []).append(module)
    tied: dict[nn.Module, str] = {}
    for modules in holders.values():
        for module in modules:
            others = [layers[m][0] for m in modules if m is not module]
            if others:
                tied[module] = f"weight tied to {', '.join(others)}"
    return tied


def check_finite(module: nn.Module, name: str) -> None:
    """Raise BadWeights at the first weight or bias of a layer that is NaN or infinite."""
    for key in ("weight", "bias"):
        parameter = module._parameters.get(key)
        if parameter is None or parameter.is_meta:
            continue
        value = parameter.detach()
        finite = torch.isfinite(value)
        if not finite.all():
            at = tuple(int(i) for i in (~finite).nonzero()[0])
            raise BadWeights(
                need(
                    "quantizing needs finite weights",
                    f"{float(value[at])} at {name}.{key}{list(at)}",
                    "Repair or retrain this layer, or skip it.",
                )
            )


def _globs(given: str | Sequence[str] | None) -> list[str] | None:
    if given is None:
        return None
    return [given] if isinstance(given, str) else list(given)


def _matches(names: list[str], glob: str) -> bool:
    return any(fnmatchcase(name, glob) for name in names)


def _check_conflicts(
    rules: Mapping[str, TernaryConfig],
    chosen: list[str] | None,
    left_out: list[str] | None,
    layers: dict[nn.Module, list[str]],
) -> None:
    """A rule all of whose layers stay out contradicts skip or only: refuse to pick a winner."""

    def stays(names: list[str]) -> bool:
        skipped = any(_matches(names, glob) for glob in left_out or ())
        return skipped or (chosen is not None and not any(_matches(names, g) for g in chosen))

    for glob in rules:
        ruled = [names for names in layers.values() if _matches(names, glob)]
        if all(stays(names) for names in ruled):
            raise BadConfig(
                need(
                    f"rule {glob!r} must apply to a layer",
                    f"all of {', '.join(n[0] for n in ruled)} in skip or not in only",
                    "Remove the rule, or let a layer of it in.",
                )
            )


def _check_globs(globs: list[str], layers: dict[nn.Module, list[str]]) -> None:
    for glob in globs:
        if not any(_matches(names, glob) for names in layers.values()):
            known = ", ".join(names[0] for names in layers.values())
            raise BadConfig(
                need(
                    f"every glob in rules, only and skip must match a weighted layer ({known})",
                    repr(glob),
                    "Correct it or leave it out.",
                )
            )
