# SPDX-License-Identifier: Apache-2.0
"""The copy of a network that compile works on: its weights are constants and nothing is hooked.

What the untouched network computes is noted first, so that everything after it can be held to that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.changes import Changes, read_without_call
from ternary_ops.graph.nodes import layer_class, module_of
from ternary_ops.graph.signature import Signature
from ternary_ops.graph.usage import Usage, watching
from ternary_ops.nn import PackedLayer, TernaryLayer
from ternary_ops.nn.planned import check_finished, listed, warn_of_zeros

_log = logging.getLogger(__name__)
_KINDS = ("_forward_pre_hooks", "_forward_hooks")


@torch.no_grad()
def prepare(
    model: nn.Module,
    network: nn.Module,
    x: Tensor,
    signature: Signature,
    islands: bool,
    allow_unfinished: bool,
) -> Tensor:
    """Make the weights of `network`, a copy of `model` in eval mode, constants, in place, and drop
    hooks that only look on. Returns what the untouched network makes of x, activations not rounded.

    Raises UnsupportedModel, naming them, for hooks that change values of modules whose type alone
    a program reads, for layers held outside the module tree and for pruning that is not finished.
    With islands the first two may lie in one of them and are left to later.
    """
    layers = _quantized(network)
    check_finished(layers, allow_unfinished)
    for layer in layers.values():
        layer.fold_scales()  # programs have one scale a filter
    with watching(network) as usage, _hooks_seen(network) as hooks, float_activations(network):
        expected = signature.result(network, x.clone())
    _materialize(network)
    for owner in (model, network):  # a closure of the copy calls modules of the original
        usage.check_replaced(_quantized(owner))
    left = [hook for hook in hooks if hook.there]
    if not islands:
        _check_outside(usage)
        _check_hooks(network, left)
    for hook in left:
        if not hook.changes:
            hook.remove()
    warn_of_zeros(layers)
    calls = usage.calls
    idle = [name for name, layer in layers.items() if not calls[layer]]
    if idle:
        _log.warning("planned, but not run in eval mode, so not compiled: %s", listed(idle))
    return expected


def check_read(network: nn.Module, traced: fx.GraphModule) -> None:
    """Raise UnsupportedModel, naming them, for layers whose tensors or type do not say what they
    compute, and for quantized ones whose latent weight the model's code reads.
    """
    changes = Changes(network)
    called = {module_of(n): str(n.target) for n in traced.graph.nodes if n.op == "call_module"}
    found: dict[str, list[str]] = {}
    for module, name in called.items():
        if module is not None and (why := changes.why_not(module, "read")):
            found.setdefault(why, []).append(name)
    read = read_without_call(traced.graph)
    for name, module in network.named_modules():
        if isinstance(module, (TernaryLayer, PackedLayer)):
            own = [p for n, p in module.named_parameters(recurse=False) if n != "bias"]  # a float
            for by in {read[id(p)] for p in own if id(p) in read}:
                why = f"{by} reads its float weight, not its codes"
                found.setdefault(why, []).append(name)
    if found:
        raise UnsupportedModel(
            need(
                "a model that reads each layer's weight once, and computes by the layer's type",
                "; ".join(f"{listed(names)}: {why}" for why, names in found.items()),
                "Make such a weight a parameter of its own, and call quantized layers themselves, "
                "by name or by F.linear or F.conv2d in the forward of the module that holds them.",
            )
        )


@contextmanager
def float_activations(network: nn.Module) -> Iterator[None]:
    """Trainable quantized layers take their input as it comes, without rounding that a last bit
    could turn, while the body runs.
    """
    former = [(m, m.config) for m in network.modules() if isinstance(m, TernaryLayer)]
    try:
        for layer, config in former:
            layer.config = replace(config, activations="float32")
        yield
    finally:
        for layer, config in former:
            layer.config = config


def _quantized(network: nn.Module) -> dict[str, TernaryLayer]:
    return {n: m for n, m in network.named_modules() if isinstance(m, TernaryLayer)}


def _materialize(network: nn.Module) -> None:
    """Weights that torch's own hooks and parametrizations compute, and shared ones, become
    parameters of their module, with the value they have in eval mode.
    """
    seen: set[int] = set()
    for module in list(network.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            _settle(module, hook)
        if hasattr(module, "parametrizations"):
            # By hand: torch's remove_parametrizations changes the class, which the original shares.
            values = {
                name: getattr(module, name) for name in cast(nn.ModuleDict, module.parametrizations)
            }
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module._modules["parametrizations"]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.detach().clone()))
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                module._parameters[name] = parameter = nn.Parameter(parameter.detach().clone())
            seen.add(id(parameter))


def _settle(module: nn.Module, hook: Any) -> None:
    """Take a hook of torch.nn.utils away; its result stays."""
    if isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    elif isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)


@dataclass
class _Hook:
    """A user's hook, and whether it changed what flowed, or a tensor of its module."""

    module: nn.Module
    kind: str
    key: int
    call: Callable[..., Any]
    changes: bool = field(default=False)

    def watched(self, module: nn.Module, *given: Any) -> Any:
        """Call the hook and record whether it changes anything."""
        before = _versions((given, _tensors(module)))
        made = self.call(module, *given)
        self.changes |= made is not None or before != _versions((given, _tensors(module)))
        return made

    @property
    def there(self) -> bool:
        """True while the hook is registered."""
        return self.key in getattr(self.module, self.kind)

    def remove(self) -> None:
        """Take the hook off its module."""
        del getattr(self.module, self.kind)[self.key]


@contextmanager
def _hooks_seen(network: nn.Module) -> Iterator[list[_Hook]]:
    """Watch what every forward hook does while the body runs."""
    hooks = [
        _Hook(module, kind, key, call)
        for module in network.modules()
        for kind in _KINDS
        for key, call in getattr(module, kind).items()
    ]
    try:
        for hook in hooks:
            getattr(hook.module, hook.kind)[hook.key] = hook.watched
        yield hooks
    finally:
        for hook in hooks:
            getattr(hook.module, hook.kind)[hook.key] = hook.call


def _tensors(module: nn.Module) -> list[Tensor]:
    own = (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
    return [value for value in own if isinstance(value, Tensor)]


def _versions(value: Any) -> list[tuple[int, int]]:
    """Every tensor in nested tuples, lists and dicts: which one, and how often it was written."""
    if isinstance(value, Tensor):
        return [(id(value), 0 if value.is_inference() else value._version)]
    if isinstance(value, dict):
        value = list(value.values())
    return [v for x in value for v in _versions(x)] if isinstance(value, (list, tuple)) else []


def _check_hooks(network: nn.Module, hooks: list[_Hook]) -> None:
    """Hooks of modules that a trace looks into are traced, and compile; of others they would be
    lost.
    """
    lost = {h.module for h in hooks if h.changes and (layer_class(h.module) or h.module is network)}
    names = [name or type(m).__name__ for name, m in network.named_modules() if m in lost]
    if names:
        do = "Remove the hook, or write what it does into a module's forward."
        what = "a network without hooks that change values; those that only look on are left out"
        raise UnsupportedModel(need(what, f"hooks that change values on {', '.join(names)}", do))


def _check_outside(usage: Usage) -> None:
    if usage.outside:
        do = "Hold it in nn.ModuleList or nn.ModuleDict, or as an attribute."
        what = "layers that run in the module tree"
        raise UnsupportedModel(need(what, ", ".join(usage.places()), do))
