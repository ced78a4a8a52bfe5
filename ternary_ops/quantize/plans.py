# SPDX-License-Identifier: Apache-2.0
"""Quantization plan: what quantize_ would do to each weighted layer, and why. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import BadConfig, BadWeights, check_type, need
from ternary_ops.graph.changes import Changes
from ternary_ops.graph.token_layers import ends, token_mixing
from ternary_ops.graph.trace import TraceFailed
from ternary_ops.graph.usage import eval_graph, running_order
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.patterns import fit_pattern, get_pattern
from ternary_ops.quantize.engine_costs import with_costs
from ternary_ops.quantize.plan_rows import Plan, PlanRow, weight_shape


@runtime_checkable
class Allocator(Protocol):
    """Chooses weights and zeros of layers within a limit: `budget.Budget`."""

    def allocate(
        self, model: nn.Module, plan: Plan, free: list[str], batches: Iterable[Any]
    ) -> Plan:
        """`plan` with the configs of the layers named in `free` replaced."""
        ...


def plan(
    model: nn.Module,
    config: TernaryConfig | None = None,
    rules: Mapping[str, TernaryConfig] | None = None,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    *,
    auto: bool = False,
    budget: Allocator | None = None,
    batches: Iterable[Any] | None = None,
    example: Tensor | None = None,
) -> Plan:
    """Decide for every weighted layer of `model`; nothing is changed.

    By default the first convolution, depthwise convolutions, the last linear layer (several where
    none of them feeds another layer) and linear layers over tokens, as in MLP-Mixer, become dense
    int8; the rest follow `config` (default TernaryConfig()): of transformers queries, keys and
    values, projections and channel MLPs. First and last are in execution order in eval mode: on
    `example`, an input of the model, or without one in a trace of its code. If torch.fx cannot
    trace it, declaration order is used, and the reason says so; layers over tokens are not told
    apart then. With an example, layers that do not run on it are left alone, unless a rule names
    them.

    With scope "time" the example is needed: what each layer costs in the engine is measured once,
    on the threads that programs use now (`runtime.num_threads`), and stands in the plan. In a
    distributed run every process plans, and all get the costs that the first one measured.

    `rules` maps globs on layer names to configs that override this; the last match counts. `only`
    and `skip` are globs: layers not in `only`, or in `skip`, are left alone. A layer with several
    names is listed under the first; globs may use any of them.

    auto: mixed-precision allocation. Choose weights (ternary or 8 bits) and zeros of every layer
    that `config` alone would make ternary, so that the compiled network keeps to `budget`
    (`budget.Budget`: ms or bytes) and its output changes least. It is measured on `batches`, as for
    calibrate; time on one sample of them. It takes about a dozen compilations, and one pass over
    the batches for every layer and candidate; 32 to 64 samples are plenty.

    Raises BadConfig when a glob matches no weighted layer, when a rule has no effect (skip or only
    leave out all its layers) or asks for something else of a layer that is quantized already, when
    auto is given without budget and batches or they without auto, when the budget is too small, or
    without an example for scope "time"; BadWeights when a weight is not finite.
    """
    _check_auto(auto, budget, batches)
    model = unwrap(model)
    config = TernaryConfig() if config is None else config
    _check_types(config, rules, only, skip)
    wish = _Wish(config, dict(rules or {}), _globs(only), _globs(skip))
    layers = _weighted_layers(model)
    wish.check(layers)
    order, how = running_order(model, example)
    idle = set() if example is None or order is None else set(layers) - set(order)
    special = _special_layers(list(layers), order, how) | _by_graph(model, list(layers), example)
    made = Plan(tuple(wish.rows(Changes(model), layers, special, idle)))
    if budget is not None and batches is not None:
        free = [name for name in wish.free(made, layers) if made[name].action == "ternary"]
        made = _allocated(model, made, free, budget, batches)
    return with_costs(model, made, example)


def free_layers(
    model: nn.Module, made: Plan, config: TernaryConfig, rules: Mapping[str, TernaryConfig] | None
) -> list[str]:
    """Layers of a plan that follow its `config` alone: no rule, no default for their kind."""
    wish = _Wish(config, dict(rules or {}), None, None)
    return wish.free(made, _weighted_layers(unwrap(model)))


@dataclass(frozen=True)
class _Wish:
    """The arguments of `plan`: configs and selections by globs on layer names."""

    config: TernaryConfig
    rules: dict[str, TernaryConfig]
    only: list[str] | None
    skip: list[str] | None

    def check(self, layers: dict[nn.Module, list[str]]) -> None:
        """Raise BadConfig for a glob that matches nothing, and a rule that has no effect."""
        _check_globs([*self.rules, *(self.only or ()), *(self.skip or ())], layers)
        for glob in self.rules:
            ruled = [names for names in layers.values() if _matches(names, glob)]
            if all(self.left_out(names) for names in ruled):
                raise BadConfig(
                    need(
                        f"a layer that rule {glob!r} applies to",
                        f"all of {', '.join(n[0] for n in ruled)} in skip or not in only",
                        "Remove the rule, or let a layer of it in.",
                    )
                )

    def rows(
        self,
        changes: Changes,
        layers: dict[nn.Module, list[str]],
        special: Mapping[nn.Module, str],
        idle: set[nn.Module],
    ) -> Iterator[PlanRow]:
        """The rows of all layers, in order."""
        for module, names in layers.items():
            if reason := changes.why_not(module, "quantize"):
                yield _row(module, names, "skip", reason)
            elif isinstance(module, tnn.TernaryLayer):
                yield self.kept(module, names)
            else:
                yield self.row(module, names, special.get(module, ""), module in idle)

    def left_out(self, names: list[str]) -> str:
        """Why `skip` or `only` keep a layer out of the plan; empty if they do not."""
        if self.skip and any(_matches(names, g) for g in self.skip):
            return "in skip"
        if self.only is not None and not any(_matches(names, g) for g in self.only):
            return "not in only"
        return ""

    def rule(self, names: list[str]) -> str:
        """The last rule that matches, its glob; empty without any."""
        return ([glob for glob in self.rules if _matches(names, glob)] or [""])[-1]

    def kept(self, module: tnn.TernaryLayer, names: list[str]) -> PlanRow:
        """The row of a layer that is quantized already, which a rule may only confirm."""
        rule = self.rule(names)
        if rule and not self.left_out(names):
            _check_kept(module, names, rule, self.rules[rule])
        row = _row(module, names, module.config.weights, "already quantized", module.config)
        return replace(row, cost=module.cost)

    def free(self, made: Plan, layers: dict[nn.Module, list[str]]) -> list[str]:
        """Layers that follow `config` alone."""
        planned = [n for m, n in layers.items() if not isinstance(m, tnn.TernaryLayer)]
        unruled = {names[0] for names in planned if not self.rule(names)}
        return [
            row.name
            for row in made
            if row.name in unruled
            and row.config is not None
            and row.config == replace(self.config, pattern=row.config.pattern)
        ]

    def row(self, module: nn.Module, names: list[str], special: str, idle: bool) -> PlanRow:
        """The row of a float layer; special: why it stays at 8 bits by default."""
        check_finite(module, names[0])
        if out := self.left_out(names):
            return _row(module, names, "skip", out)
        if rule := self.rule(names):
            return _planned(module, names, self.rules[rule], f"rule {rule!r}")
        if idle:
            return _row(module, names, "skip", "does not run on the example in eval mode")
        if special and (self.config.weights == "ternary" or self.config.zeros > 0):
            dense = replace(self.config, weights="int8", zeros=0.0)
            return _planned(module, names, dense, special)
        return _planned(module, names, self.config, "")


def _check_auto(auto: bool, budget: Allocator | None, batches: Iterable[Any] | None) -> None:
    if auto != (budget is not None) or auto != (batches is not None):
        got = f"auto={auto}, budget={budget}, batches={'None' if batches is None else 'given'}"
        do = "Pass auto=True, budget=Budget(ms=2.0), batches=[x]."
        raise BadConfig(need("auto, budget and batches together", got, do))


def _allocated(
    model: nn.Module, made: Plan, free: list[str], budget: Allocator, batches: Iterable[Any]
) -> Plan:
    """The plan with weights and zeros of the `free` layers chosen for the budget."""
    if not isinstance(budget, Allocator):
        do = "Pass Budget(ms=2.0) or Budget(bytes=500_000)."
        raise BadConfig(need("as budget a Budget", f"{budget!r:.80}", do))
    if not free:
        do = "Pass a ternary config, or fewer rules."
        raise BadConfig(need("a layer that is ternary by `config` for auto", "none", do))
    return budget.allocate(model, made, free, batches)


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
    fitted = fit_pattern(asked, weight.shape, groups, names[0])
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


def _special_layers(
    layers: list[nn.Module], order: list[nn.Module] | None, how: str
) -> dict[nn.Module, str]:
    """Layers that the default keeps at 8 bits, with the reason; quantized ones keep their place.

    order: the layers that run, first to last; None: unknown, that of `layers` counts.
    """
    running = layers if order is None else order
    convs = [m for m in running if isinstance(m, (nn.Conv2d, tnn.TernaryConv2d))]
    linears = [m for m in running if isinstance(m, (nn.Linear, tnn.TernaryLinear))]
    special: dict[nn.Module, str] = {
        m: "depthwise"
        for m in layers
        if isinstance(m, (nn.Conv2d, tnn.TernaryConv2d))
        if m.groups == m.in_channels and m.groups > 1
    }
    if convs:
        special[convs[0]] = f"first convolution{how}"
    if linears:
        special[linears[-1]] = f"last linear layer{how}"
    return special


def _by_graph(
    model: nn.Module, layers: list[nn.Module], example: Tensor | None
) -> dict[nn.Module, str]:
    """Further layers that the default keeps at 8 bits, by what comes before and after them."""
    linears = [m for m in layers if isinstance(m, (nn.Linear, tnn.TernaryLinear))]
    if len(linears) < 2:
        return {}
    try:
        graph = eval_graph(model, example)
    except TraceFailed:  # the order of the layers has to do
        return {}
    found: dict[nn.Module, str] = {m: "last linear layer" for m in ends(graph)}
    for module in token_mixing(graph):
        found[module] = "mixes tokens: one weight for every channel"
    return found


def _check_kept(
    module: tnn.TernaryLayer, names: list[str], glob: str, config: TernaryConfig
) -> None:
    """Raise BadConfig where a rule asks for another config than a quantized layer has."""
    if config.weights == "float" or _planned(module, names, config, "").config != module.config:
        raise BadConfig(
            need(
                f"layers that are not quantized yet for rule {glob!r}",
                f"{names[0]}, quantized with another config ({module.config})",
                "Narrow the glob, or plan from the float network.",
            )
        )


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
                    "finite weights to quantize",
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


def _check_globs(globs: list[str], layers: dict[nn.Module, list[str]]) -> None:
    for glob in globs:
        if not any(_matches(names, glob) for names in layers.values()):
            known = ", ".join(names[0] for names in layers.values())
            raise BadConfig(
                need(
                    f"globs in rules, only and skip that match a weighted layer ({known})",
                    repr(glob),
                    "Correct it or leave it out.",
                )
            )
