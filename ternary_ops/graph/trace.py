# SPDX-License-Identifier: Apache-2.0
"""A network as a graph: torch.fx, in which every layer of torch.nn or ternary_ops.nn is a leaf."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, fx, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.batches import batch_of
from ternary_ops.graph.function_calls import call_layers_
from ternary_ops.graph.functional_layers import name_layers_
from ternary_ops.graph.inplace import name_inplace_results
from ternary_ops.graph.lines import line_of
from ternary_ops.graph.observed import INPUT_VALUE, name_values
from ternary_ops.graph.signature import Signature, naming_failures, signature_of
from ternary_ops.graph.sizes import drop_asserts, drop_unused_sizes
from ternary_ops.graph.tracer import NetworkTracer, ValueTracer

ON_EXAMPLE = "on example"  # in the meta of a trace whose sizes are those of an example


class TraceFailed(UnsupportedModel):
    """torch.fx cannot trace the module at `path` ("" for the model itself)."""

    path: str = ""


class OutsideTree(TraceFailed):
    """The model calls `module`, which is not among its modules()."""

    module: nn.Module


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while the body runs; every module gets its former mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """Eval mode while the body runs; every module then has its former mode and attributes back,
    also those that its forward wrote, with the contents of its lists, dicts and sets.
    """
    modules = list(model.modules())
    kept = [(module, dict(vars(module)), _contents(vars(module))) for module in modules]
    try:
        model.eval()
        yield
    finally:
        for module, attributes, contents in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in contents:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)


def _contents(value: Any, depth: int = 3) -> list[tuple[Any, Any]]:
    """Every list, dict and set in a value, with a copy of what it holds."""
    found = [] if isinstance(value, tuple) else [(value, value.copy())]
    for part in value.values() if isinstance(value, dict) else value:
        if depth and isinstance(part, (list, dict, set, tuple)):
            found += _contents(part, depth - 1)
    return found


def trace(
    model: nn.Module,
    whole: Collection[nn.Module] = (),
    signature: Signature | None = None,
    example: Tensor | None = None,
) -> fx.GraphModule:
    """Trace of `model.forward` in eval mode; the graph module shares its submodules with `model`,
    and layers written as functions are modules too (`functional_layers`).

    It takes one tensor, as `signature` says, and returns one, or a tuple where the model returns
    several and none is named. All other arguments of forward are constants; the modules in `whole`
    are not looked into. Without an example the trace is symbolic and holds for every size; with
    one, sizes are those of the example, its batch included, and Python code may decide on them.

    Raises TraceFailed, an UnsupportedModel, with the reason and the line, when control flow depends
    on the values of a tensor, or anything else stops the trace.
    """
    signature = signature_of(model) if signature is None else signature
    tracer = NetworkTracer(whole) if example is None else ValueTracer(example.clone(), whole)
    graph, entry = _graph(model, tracer, signature)
    drop_asserts(graph)
    drop_unused_sizes(graph)
    traced = fx.GraphModule(entry, graph)  # which has the constants that the trace met
    traced.meta[ON_EXAMPLE] = example is not None
    call_layers_(traced)
    name_inplace_results(traced.graph)
    first = getattr(model, "meta", {}).get(INPUT_VALUE)
    name_values(traced.graph, first)
    name_layers_(traced, model)
    return traced


def trace_at(model: nn.Module, example: Tensor | None) -> fx.GraphModule:
    """A symbolic trace, or, where that fails and there is an example, one on two samples of it.

    Raises TraceFailed, which asks for an example where there is none.
    """
    try:
        return trace(model)
    except OutsideTree:
        raise
    except TraceFailed as error:
        if example is not None:
            return trace(model, example=batch_of(example, 2))
        more = TraceFailed(f"{error} If it decides on sizes, pass example=, an input.")
        more.path = error.path
        raise more from error


def _graph(
    model: nn.Module, tracer: NetworkTracer, signature: Signature
) -> tuple[fx.Graph, nn.Module]:
    """What torch.fx traces, and of which module; raises TraceFailed."""
    entry = _entry(model, signature)
    try:
        with restoring(model):
            graph = tracer.trace(entry)
    except Exception as error:  # the model's own code runs here: whatever it raises is the reason
        if tracer.outside is not None:
            raise _outside(tracer, model) from error
        where = f"{tracer.failed} of " if tracer.failed else ""
        line = line_of(error)
        failed = TraceFailed(
            need(
                "a model that can be traced (no control flow on the values of tensors)",
                f"{type(error).__name__} from {where}{type(model).__name__}"
                f"{f', {line}' if line else ''}: {error}",
                "Rewrite that line with tensor operations, or give it a module of its own.",
            )
        )
        failed.path = tracer.failed or ""
        raise failed from error
    for line in sorted(tracer.checks):
        _must_fail(model, NetworkTracer(tracer.whole, line), entry)
    return graph, entry


def _outside(tracer: NetworkTracer, model: nn.Module) -> OutsideTree:
    """The error for a module that the model calls but does not have."""
    what = "modules that a model calls in its module tree"
    got = (
        f"a {type(tracer.outside).__name__} held elsewhere, called by {tracer.failed or 'forward'}"
    )
    do = "Hold it as an attribute, or in nn.ModuleList or nn.ModuleDict."
    error = OutsideTree(need(what, f"{got} of {type(model).__name__}", do))
    error.path, error.module = tracer.failed or "", cast(nn.Module, tracer.outside)
    return error


def _must_fail(model: nn.Module, tracer: NetworkTracer, entry: nn.Module) -> None:
    """A comparison of the number of channels or axes is a check if the other outcome raises an
    error, and control flow otherwise.
    """
    try:
        with restoring(model):
            tracer.trace(entry)
    except Exception:  # the model's own: which one does not matter
        return
    what = "a model that torch.fx can trace (no control flow on the number of channels or axes)"
    got = f"a branch in {type(model).__name__}"
    raise TraceFailed(need(what, got, "Decide it when the model is made."))


def _entry(model: nn.Module, signature: Signature) -> nn.Module:
    """A module with the parts of `model` whose forward takes its one input alone."""

    def forward(self: nn.Module, x: Any) -> Any:
        return signature.forward(model, x)

    entry: nn.Module = object.__new__(
        type(type(model).__name__, (nn.Module,), {"forward": forward})
    )
    entry.__dict__.update(model.__dict__)
    return entry


def trace_around(
    model: nn.Module, signature: Signature | None = None, example: Tensor | None = None
) -> tuple[fx.GraphModule, list[TraceFailed]]:
    """As `trace`, with the modules that cannot be traced kept whole: why, one error each. Raises
    TraceFailed where that is the model itself.
    """
    failed: list[TraceFailed] = []
    while True:
        try:
            parts = [model.get_submodule(error.path) for error in failed]
            return trace(model, parts, signature, example), failed
        except TraceFailed as error:
            if not error.path:
                raise
            failed.append(error)


class Interpreter(fx.Interpreter):
    """torch.fx's, of one input, which leaves its own words out of what a layer raises."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.extra_traceback = False

    def run(self, x: Tensor) -> Any:  # type: ignore[override]
        """Run the graph on x. Raises UnsupportedModel where it fails."""
        with naming_failures(x):
            return super().run(x)
