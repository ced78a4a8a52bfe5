# SPDX-License-Identifier: Apache-2.0
"""Module usage: how often each module runs in a call, and what runs outside the module tree."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import ternary_ops.nn as tnn
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.nodes import module_of
from ternary_ops.graph.signature import signature_of
from ternary_ops.graph.trace import OutsideTree, TraceFailed, evaluating, trace, trace_at

_log = logging.getLogger(__name__)
_DEPTH = 3  # of lists in lists that are looked through for a module


@dataclass
class Usage:
    """Modules that ran: those of the tree in call order, and those with weights outside the tree,
    once each.
    """

    model: nn.Module
    sequence: list[nn.Module] = field(default_factory=list)
    outside: list[nn.Module] = field(default_factory=list)

    @property
    def calls(self) -> Counter[nn.Module]:
        """Number of runs of each module of the tree."""
        return Counter(self.sequence)

    def places(self) -> list[str]:
        """The modules outside the tree, for people: "Conv2d in Net.layers[0]"."""
        return [f"{type(m).__name__} in {_place(self.model, m)}" for m in self.outside]

    def warn_outside(self) -> None:
        """Name what runs outside the tree, if anything does."""
        if self.outside:
            _log.warning(
                "run, but outside the module tree, so neither planned nor saved: %s",
                ", ".join(self.places()),
            )

    def check_replaced(self, layers: Mapping[str, tnn.TernaryLayer]) -> None:
        """Raise UnsupportedModel where a float layer ran whose weight a quantized one took over."""
        own = {id(p) for module in self.outside for p in module.parameters(recurse=False)}
        stale = [name for name, layer in layers.items() if id(layer.weight) in own]
        if stale:
            raise UnsupportedModel(
                need(
                    "a model that calls the layers that quantize_ put in place",
                    f"calls of the float layers before {', '.join(stale)}, which are held outside "
                    f"the module tree ({', '.join(self.places())})",
                    "Call them as attributes, or hold them in nn.ModuleList, before quantize_.",
                )
            )


@contextmanager
def watching(model: nn.Module) -> Iterator[Usage]:
    """Count what this thread calls while the body runs."""
    usage, inside, thread = Usage(model), set(model.modules()), threading.get_ident()

    def called(module: nn.Module, arguments: Any) -> None:
        if threading.get_ident() != thread:
            return
        if module in inside:
            usage.sequence.append(module)
        elif module not in usage.outside and _weighted(module):
            usage.outside.append(module)

    handle = register_module_forward_pre_hook(called)
    try:
        yield usage
    finally:
        handle.remove()


def running_order(model: nn.Module, example: Tensor | None) -> tuple[list[nn.Module] | None, str]:
    """The modules that run in eval mode, call after call: on the example, or without it in a trace,
    which takes all that a module of torch.nn has for run.

    None where there is no example and torch.fx cannot trace the model, and a remark that says so.
    """
    with evaluating(model):
        if example is not None:
            # With gradients: torch's fused transformer layers, which go without, call no module.
            with watching(model) as usage, torch.enable_grad():
                for x, _ in samples(model, [example]):
                    signature_of(model).call(model, x.clone())
            usage.warn_outside()
            return usage.sequence, ""
        try:
            called = map(module_of, trace(model).graph.nodes)
        except TraceFailed as error:
            if isinstance(error, OutsideTree):
                Usage(model, outside=[error.module]).warn_outside()
            return None, " (as declared: pass example)"
    return [part for module in called if module is not None for part in module.modules()], ""


def idle_layers(layers: Mapping[str, tnn.TernaryLayer], graph: fx.Graph | None = None) -> list[str]:
    """Layers that do not run in eval mode, such as heads for training alone: calibrate saw no call,
    or where it has not counted in this process, a trace in eval mode has none.
    """
    called: set[nn.Module] | None = None
    if graph is not None:
        modules = (module_of(node) for node in graph.nodes)
        called = {part for module in modules if module is not None for part in module.modules()}
    return [
        name
        for name, layer in layers.items()
        if layer.calls == 0 or (layer.calls is None and called is not None and layer not in called)
    ]


def eval_graph(model: nn.Module, example: Tensor | None = None) -> fx.Graph:
    """The graph of a trace in eval mode, whatever the mode; example: as in `trace_at`. Raises
    TraceFailed.
    """
    return trace_at(model, example).graph


def _weighted(module: nn.Module) -> bool:
    return any(p is not None and p.ndim >= 2 for p in module._parameters.values())


def _place(model: nn.Module, wanted: nn.Module) -> str:
    """The attribute of a module of the tree that holds `wanted`."""
    for name, parent in model.named_modules():
        for attribute, value in vars(parent).items():
            found = None if attribute.startswith("__") else _path(value, wanted, _DEPTH)
            if found is not None:
                return f"{name or type(model).__name__}.{attribute}{found}"
    return "a place that no attribute shows"


def _path(value: Any, wanted: nn.Module, depth: int) -> str | None:
    """Path of the module within a value: "[0]", "['a'][1]", "" for the value itself."""
    if value is wanted:
        return ""
    if depth == 0 or type(value) not in (list, tuple, dict):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found = _path(inner, wanted, depth - 1)
        if found is not None:
            return f"[{key!r}]{found}"
    return None
