# SPDX-License-Identifier: Apache-2.0
"""Set the uint8 ranges of activations from sample data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

import ternary_ops.nn as tnn
from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.graph.batches import batch_of, samples
from ternary_ops.graph.changes import read_without_call
from ternary_ops.graph.channel_ops import keeps_range, narrows
from ternary_ops.graph.nodes import fused_chain, is_layer, module_of, readers
from ternary_ops.graph.observed import keep_ranges, value_name
from ternary_ops.graph.signature import signature_of
from ternary_ops.graph.trace import Interpreter, TraceFailed, evaluating, trace, trace_around
from ternary_ops.graph.usage import Usage, watching
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.held_weights import held_weights
from ternary_ops.quantize.histogram import METHODS, Histogram

_log = logging.getLogger(__name__)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    method: str = "mse",
    percentile: float = 99.99,
    rules: Mapping[str, str | float] | None = None,
) -> None:
    """Set `input_range` of every layer with uint8 activations, and `output_range` where needed.

    batches     tensors, or tuples whose first element is the input; moved to the model's device
    method      "minmax"; "percentile" (of each side, see `percentile`); "mse": the clipping that
                makes the squared quantization error smallest ("uint11" inputs: "minmax")
    rules       globs on layer names -> another method, or a number: that percentile. The last match
                counts, for the layer's input and output range

    `output_range` is for values that no layer reads as its input: the output of a layer, with the
    BatchNorm, residual add and activation fused into it, that a pool or another layer's residual
    add reads. Values that no layer makes (an unfolded BatchNorm, sums, products, functions) are
    observed too; the model keeps their ranges. Both are found by tracing, around modules that
    torch.fx cannot trace; if that is the model itself, only input ranges are set, with a warning.

    The network is observed in eval mode, with float activations and the weights of each layer's
    phase, so calling again gives the same ranges; the former mode is restored. Input ranges are
    parameters, which training continues from. Calls of every quantized layer are counted
    (`TernaryLayer.calls`); a warning names those that did not run.

    Raises BadConfig for an unknown method, a percentile that is not in 50 to 100 or a glob that
    matches no layer, UnsupportedModel without any batch, when an activation is not finite, when no
    quantized layer runs, or when the model calls a float layer that quantize_ replaced; then the
    former ranges stay.
    """
    _check(method, percentile)
    model = unwrap(model)
    check_type(
        "rules", {} if rules is None else rules, Mapping, "Pass a dict of globs and methods."
    )
    quantized = {n: m for n, m in model.named_modules() if isinstance(m, tnn.TernaryLayer)}
    layers = {module: n for n, module in quantized.items() if module.config.integer_input}
    if not layers:
        do = "Call quantize_ first."
        raise UnsupportedModel(need("layers with uint8 activations to calibrate", "none", do))
    choices = _choices(layers, (method, percentile), rules or {})
    inputs = {layer: Histogram(f"the input of {name}") for layer, name in layers.items()}
    outputs: dict[tnn.TernaryLayer, Histogram] = {}
    values: dict[str, Histogram] = {}
    with _observing(model, layers):
        first = next(given := samples(model, batches))
        run = _runner(model, first[0], _Seen(layers, outputs, values))
        with watching(model) as usage, _hooks(inputs), held_weights(model):
            for x, _ in chain([first], given):
                run(x)
        _check_usage(usage, quantized)
    for layer in quantized.values():
        layer.calls = usage.calls[layer]
    for seen, attribute in ((inputs, "input_range"), (outputs, "output_range")):
        for layer, histogram in seen.items():
            if histogram.count:
                setattr(layer, attribute, histogram.range(*choices[layers[layer]]))
    seen_values = {n: h.range(method, percentile) for n, h in values.items() if h.count}
    keep_ranges(model, seen_values)


def _check_usage(usage: Usage, layers: Mapping[str, tnn.TernaryLayer]) -> None:
    """Name what was planned and not run, and what was run and not planned."""
    usage.check_replaced(layers)
    usage.warn_outside()
    calls = usage.calls
    idle = [name for name, layer in layers.items() if not calls[layer]]
    if len(idle) == len(layers):
        do = "Call these layers in forward: a weight that is used as a tensor alone stays float."
        what = "quantized layers that run"
        raise UnsupportedModel(need(what, f"no call of {', '.join(idle)}", do))
    for name in idle:
        _log.warning("%s was never computed in eval mode: its ranges stay unset", name)


def _check(method: object, percentile: float) -> tuple[str, float]:
    if not isinstance(method, str) or method not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise BadConfig(need(f"method as one of {names}", repr(method), "Pick one."))
    check_type("percentile", percentile, (int, float), "99.99 is usual.")
    if not 50.0 < percentile <= 100.0:
        raise BadConfig(need("percentile in 50 to 100", percentile, "99.99 is usual."))
    return method, percentile


def _choices(
    layers: Mapping[tnn.TernaryLayer, str],
    default: tuple[str, float],
    rules: Mapping[str, str | float],
) -> dict[str, tuple[str, float]]:
    """Method and percentile of every layer; for 11 bits "mse" would clip nothing."""
    choices = dict.fromkeys(layers.values(), default)
    if default[0] == "mse":
        fine = (n for m, n in layers.items() if m.config.activations == "uint11")
        choices.update(dict.fromkeys(fine, ("minmax", default[1])))
    for glob, rule in rules.items():
        number = isinstance(rule, (int, float)) and not isinstance(rule, bool)
        choice = _check("percentile", float(rule)) if number else _check(rule, default[1])
        matched = [name for name in choices if fnmatchcase(name, glob)]
        if not matched:
            what = f"globs in rules that match a layer with a range ({', '.join(choices)})"
            raise BadConfig(need(what, repr(glob), "Correct it or leave it out."))
        choices.update(dict.fromkeys(matched, choice))
    return choices


@dataclass(frozen=True)
class _Seen:
    """Histograms of layers' outputs and, by name, of values without a layer; they grow as traces
    name them. layers: those with uint8 activations.
    """

    layers: dict[tnn.TernaryLayer, str]
    outputs: dict[tnn.TernaryLayer, Histogram]
    values: dict[str, Histogram]

    def watching(self, traced: fx.GraphModule) -> _Watching:
        """An interpreter of the trace that adds to them."""
        traced.graph.eliminate_dead_code()  # what nothing reads is no reader: compile sees none
        watched: dict[fx.Node, Histogram] = {}
        owned: set[fx.Node] = set()
        for node in traced.graph.nodes:
            layer = module_of(node)
            if is_layer(node):
                owned.update(fused_chain(node).links)
            if isinstance(layer, tnn.TernaryLayer) and layer in self.layers:
                end = fused_chain(node).end
                if not (read_as_uint8(end) or _only_output(end)):
                    name = f"the output of {self.layers[layer]}"
                    watched[end] = self.outputs.setdefault(layer, Histogram(name))
        for node in traced.graph.nodes:
            stays = node.op == "get_attr" or node in owned or keeps_range(node)
            if not (stays or node.op == "output" or read_as_uint8(node) or _only_output(node)):
                histogram = Histogram(f"the value {node}")
                watched[node] = self.values.setdefault(value_name(node), histogram)
        return _Watching(traced, watched)


def _runner(model: nn.Module, x: Tensor, seen: _Seen) -> Callable[[Tensor], object]:
    """Callable for a batch such as x: an interpreter that also observes layers' outputs and values
    without a layer, or just the model.
    """
    try:
        traced = trace(model)
        if not _reads_weights(traced, seen.layers):
            return seen.watching(traced).run
        _log.info("traced again, with the sizes of each batch: a function reads layers' weights")
    except TraceFailed as error:
        _log.info("traced again, with the sizes of each batch: %s", error)
    try:
        run = _OnSizes(model, seen)
        run.interpreter(x)
        return run
    except UnsupportedModel as error:
        reason = error
    try:
        traced, failed = trace_around(model)
    except UnsupportedModel:
        _log.warning("output ranges stay unset, the model cannot be traced: %s", reason)
        return partial(signature_of(model).call, model)
    for part in failed:
        _log.warning("output ranges inside %s stay unset: %s", part.path, part)
    return seen.watching(traced).run


def _reads_weights(traced: fx.GraphModule, layers: Iterable[tnn.TernaryLayer]) -> bool:
    """True for a trace in which a function that is not looked into computes with their weights."""
    read = read_without_call(traced.graph)
    return any(layer.by_function and id(layer.weight) in read for layer in layers)


class _OnSizes:
    """Runs traces on examples: of two samples at a time, one trace for every image size."""

    def __init__(self, model: nn.Module, seen: _Seen) -> None:
        self._model, self._seen = model, seen
        self._made: dict[torch.Size, _Watching] = {}

    def interpreter(self, x: Tensor) -> _Watching:
        """That for inputs of x's size."""
        if x.shape[1:] not in self._made:
            traced = trace(self._model, example=batch_of(x, 2))
            self._made[x.shape[1:]] = self._seen.watching(traced)
        return self._made[x.shape[1:]]

    def __call__(self, x: Tensor) -> None:
        """Run a batch; an odd one's last sample counts twice."""
        interpreter = self.interpreter(x)
        for two in torch.split(x, 2):
            interpreter.run(batch_of(two, 2))


class _Watching(Interpreter):
    """Runs the traced model and adds the values of some nodes to histograms."""

    def __init__(self, module: fx.GraphModule, watched: dict[fx.Node, Histogram]) -> None:
        super().__init__(module)
        self._watched = watched

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, seen."""
        value = super().run_node(n)
        if n in self._watched and isinstance(value, Tensor) and value.is_floating_point():
            self._watched[n].add(value)
        return value


def read_as_uint8(node: fx.Node) -> bool:
    """True when layers own the range of this value: one reads all of it as its uint8 input, or
    nothing but layers reads it, in parts.
    """
    return _reads_whole(node) or (bool(readers(node)) and _reads_alone(node))


def _reads_whole(node: fx.Node) -> bool:
    return any(
        _reads_uint8(u) or (_hands_on(u, node) and not narrows(u) and _reads_whole(u))
        for u in readers(node)
    )


def _reads_alone(node: fx.Node) -> bool:
    return all(
        _reads_uint8(u) or (_hands_on(u, node) and bool(readers(u)) and _reads_alone(u))
        for u in readers(node)
    )


def _only_output(node: fx.Node) -> bool:
    """True when nothing but the network's output reads this value: it stays float."""
    users = readers(node)
    return all(u.op == "output" or (_hands_on(u, node) and _only_output(u)) for u in users)


def _hands_on(user: fx.Node, node: fx.Node) -> bool:
    """True for what keeps the range of this very operand, and not of one that has its size."""
    return keeps_range(user) and user.args[:1] == (node,)


def _reads_uint8(node: fx.Node) -> bool:
    layer = module_of(node)
    return isinstance(layer, tnn.TernaryLayer) and layer.config.integer_input


@contextmanager
def _observing(model: nn.Module, layers: Iterable[tnn.TernaryLayer]) -> Iterator[None]:
    """Eval mode and unset ranges; modes are restored, ranges too if the body fails."""
    former = [layer.kept_ranges() for layer in layers]
    try:
        for layer in layers:
            layer.input_range = layer.output_range = None
        with evaluating(model):
            yield
    except BaseException:
        for restore in former:
            restore()
        raise


@contextmanager
def _hooks(inputs: dict[tnn.TernaryLayer, Histogram]) -> Iterator[None]:
    """Count what each layer is given."""

    def watch(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(layer, tnn.TernaryLayer):
            inputs[layer].add(arguments[0])

    handles = [layer.register_forward_pre_hook(watch) for layer in inputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
