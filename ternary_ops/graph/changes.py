# SPDX-License-Identifier: Apache-2.0
"""Permitted changes to a module: the one rule that plan, fold_batchnorm_, equalize_,
reorder_channels_, remove_, pack_ and compile ask before they replace a layer, write into it or read
its weight as a constant.

A weight may be written, or read as a constant, only where it is a tensor of the module's own. One
that a hook or parametrization recomputes at every call (torch.nn.utils.prune, weight_norm,
spectral_norm) would lose what was written, and may hold the value of an earlier call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, fx, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.function_calls import BY_FUNCTION
from ternary_ops.graph.functional_layers import READ
from ternary_ops.graph.nodes import Chain, layer_class, module_of, parent_of
from ternary_ops.graph.subclass_twins import rest_of, twin_of
from ternary_ops.graph.torch_op import Kinds
from ternary_ops.graph.torch_ops import BATCH_NORM
from ternary_ops.nn.function_calls import SENT

_FLOAT: Kinds = (nn.Linear, nn.Conv2d)
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
Rule = Callable[["Changes", nn.Module], str]  # the reason against a change, or ""


class Changes:
    """Permitted changes to each module of one network in its present state."""

    def __init__(self, model: nn.Module, graph: fx.Graph | None = None) -> None:
        """graph: a trace of the model, which shows weights that its code reads without a call of
        their layer; without one these are not seen.
        """
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names: dict[nn.Module, str] = {}
        self._holders: dict[int, list[nn.Module]] = {}
        for name, module in model.named_modules():
            self._names[module] = name
            for parameter in module._parameters.values():
                if parameter is not None:
                    self._holders.setdefault(id(parameter), []).append(module)
        self._read = {} if graph is None else read_without_call(graph)
        nodes = () if graph is None else graph.nodes
        self._by_function = {module_of(node) for node in nodes if node.meta.get(BY_FUNCTION)}

    def why_not(self, module: nn.Module, change: str) -> str:
        """Reason that forbids a change of `module`; empty if it is allowed.

        change: "quantize" (a quantized layer takes over its weight), "fold" (its weight and bias
        are scaled), "absorb" (a BatchNorm is folded into the layer before it), "pass" (it stands
        between those two), "pack" (packed codes replace it), "read" (a program takes its tensors,
        and its function from its type), "rewrite" (its channels are scaled or reordered), "cut"
        (channels are removed from its tensors).
        """
        for obstacle in _OBSTACLES[change]:
            if reason := obstacle(self, module):
                return reason
        return ""

    def against_fusing(self, chain: Chain) -> list[tuple[str, str]]:
        """Why a layer and the BatchNorm of its chain must stay apart: names of modules, from the
        first to the last, and the reason that each is.
        """
        last = chain.links.index(chain.batchnorm) if chain.batchnorm is not None else 0
        found = []
        for i, node in enumerate(chain.links):
            module = self.own(node)
            change = "fold" if i == 0 else "absorb" if i == last else "pass"
            if i <= last and module is not None and (why := self.why_not(module, change)):
                found.append((str(node.target), why))
        return found

    def own(self, node: fx.Node) -> nn.Module | None:
        """The model's module that a node calls; of a layer that a subclass's forward computes by
        functions, that subclass.
        """
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def check(self, modules: Iterable[nn.Module], change: str, what: str) -> None:
        """Raise UnsupportedModel, naming the first of these modules that forbids the change; what:
        the change, for the message.
        """
        for module in modules:
            if reason := self.why_not(module, change):
                got = f"{self._names.get(module) or type(module).__name__}: {reason}"
                do = "Nothing was changed: take that away, or leave the network as it is."
                raise UnsupportedModel(need(f"modules that can be {what}", got, do))

    def tied(self, module: nn.Module, rank: int = 0) -> str:
        """Another module holds a parameter of this one that has `rank` axes or more: what is
        written into one would change both.
        """
        others: list[str] = []
        for parameter in module._parameters.values():
            matters = parameter is not None and (
                nn.parameter.is_lazy(parameter) or parameter.ndim >= rank
            )
            if matters:
                holders = self._holders.get(id(parameter), [])
                others += [self._names[m] for m in holders if m is not module]
        return f"weight tied to {', '.join(dict.fromkeys(others))}" if others else ""

    def read_elsewhere(self, module: nn.Module) -> str:
        """The model's code takes a weight of this module without calling the module."""
        for parameter in module._parameters.values():
            if id(parameter) in self._read:
                return f"its weight is read by {self._read[id(parameter)]} as well"
        return ""

    def called_by_function(self, module: nn.Module) -> str:
        """The model's code calls this quantized layer by a function of its weight."""
        by = module in self._by_function or module in SENT
        return "the model's code hands its weight to a function: compile takes that" if by else ""

    def foreign(self, module: nn.Module) -> str:
        """A layer of the trace alone: code of the model's own calls functions that compute it."""
        return "" if module in self._names else "the model's own code computes it by functions"

    def unnamed(self, module: nn.Module) -> str:
        """The model is nothing but this layer."""
        alone = not self._names.get(module, "")
        return "the model is this one layer: wrap it in nn.Sequential" if alone else ""


def read_without_call(graph: fx.Graph) -> dict[int, str]:
    """Parameters that the traced code reads itself: id -> the function or method that does."""
    owner = graph.owning_module
    found: dict[int, str] = {} if owner is None else owner.meta.get(READ, {})
    return found


def replaced_forward(module: nn.Module) -> str:
    """This very object has a forward of its own, which its type says nothing of."""
    return "its forward was replaced by another function" if "forward" in vars(module) else ""


def lazy(module: nn.Module) -> str:
    """No weight yet."""
    waits = any(p is not None and nn.parameter.is_lazy(p) for p in module._parameters.values())
    return "not initialized: run the model once first" if waits else ""


def parametrized(module: nn.Module) -> str:
    """torch.nn.utils.parametrize computes a tensor of it."""
    made = hasattr(module, "parametrizations")
    return "parametrized: remove the parametrization first" if made else ""


def computed(module: nn.Module) -> str:
    """A hook computes its weight or bias before every call."""
    for name in _TENSORS:
        if isinstance(vars(module).get(name), Tensor):
            how = "weight_norm, spectral_norm, torch.nn.utils.prune"
            return f"{name} computed by a hook ({how}): remove it first"
    return ""


def hooked(module: nn.Module) -> str:
    """Hooks see, and may change, its weight, what it is given or what it returns."""
    here = any(getattr(module, kind) for kind in _HOOKS)
    return "hooks are registered on it" if here else ""


def _quantizable(module: nn.Module) -> str:
    kind = type(module)
    if kind in _packed():
        return "already packed"
    if isinstance(module, tnn.TernaryLayer) or layer_class(module) in _FLOAT:
        return ""
    if twin_of(module) is not None:
        return ""
    if isinstance(module, _FLOAT):
        return f"a subclass of {parent_of(module).__name__} with a forward of its own"
    if layer_class(module) is nn.ConvTranspose2d:
        return "no ternary twin of transposed convolutions, which stay float"
    return "no ternary twin of this type"


def _quantized() -> Kinds:
    return tnn.TernaryLinear, tnn.TernaryConv2d


def _packed() -> Kinds:
    return tnn.PackedLinear, tnn.PackedConv2d


def _exactly(kinds: Callable[[], Kinds]) -> Rule:
    def check(changes: Changes, module: nn.Module) -> str:
        known = kinds()
        if type(module) in known or layer_class(module) in known:
            return ""
        based = [k.__name__ for k in known if isinstance(module, k)]
        of = f"a subclass of {based[0]}" if based else f"a {type(module).__name__}"
        return f"{of}: what it computes is not known"

    return check


def _foldable(changes: Changes, module: nn.Module) -> str:
    reason = _exactly(lambda: (*_FLOAT, *_quantized()))(changes, module)
    return "" if reason and twin_of(module) is not None else reason


def _normalizes(changes: Changes, module: nn.Module) -> str:
    reason = _exactly(lambda: BATCH_NORM.modules)(changes, module)
    return "" if reason and rest_of(module) is not None else reason


def _dtype(module: nn.Module) -> str:
    weight = module._parameters.get("weight")
    known = weight is None or weight.is_floating_point()
    return "" if weight is None or known else f"weight of dtype {weight.dtype}"


def _alone(rule: Callable[[nn.Module], str]) -> Rule:
    return lambda changes, module: rule(module)


# A parametrization, and a lazy layer, change the type as well: they come before rules on types.
_SETTLED = (_alone(lazy), _alone(parametrized))
_CONSTANT = (_alone(computed), _alone(replaced_forward))
_OBSTACLES: dict[str, tuple[Rule, ...]] = {
    "quantize": (
        *_SETTLED,
        _alone(_quantizable),
        *_CONSTANT,
        _alone(_dtype),
        Changes.unnamed,
        lambda changes, module: changes.tied(module, rank=2),
    ),
    "fold": (
        *_SETTLED,
        _foldable,
        *_CONSTANT,
        Changes.tied,
        Changes.read_elsewhere,
        _alone(hooked),
    ),
    "absorb": (
        *_SETTLED,
        _normalizes,
        *_CONSTANT,
        Changes.read_elsewhere,
        _alone(hooked),
    ),
    "pass": (_alone(replaced_forward), _alone(hooked)),
    "pack": (
        *_SETTLED,
        _exactly(_quantized),
        *_CONSTANT,
        Changes.read_elsewhere,
        Changes.called_by_function,
    ),
    "read": (*_SETTLED, *_CONSTANT),
    "cut": (*_SETTLED, Changes.foreign, *_CONSTANT, Changes.tied, Changes.read_elsewhere),
    "rewrite": (*_SETTLED, Changes.foreign, *_CONSTANT, _alone(hooked)),
}
