# SPDX-License-Identifier: Apache-2.0
"""A network as a graph: torch.fx, in which every layer of torch.nn or ternary_ops.nn is a leaf."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, fx, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.functional_layers import name_layers_
from ternary_ops.graph.inplace import name_inplace_results
from ternary_ops.graph.lines import calling_line
from ternary_ops.graph.nodes import layer_class
from ternary_ops.graph.observed import INPUT_VALUE, name_values
from ternary_ops.graph.signature import Signature, naming_failures, signature_of
from ternary_ops.graph.sizes import decide_check, drop_asserts, drop_unused_sizes

ON_EXAMPLE = "on example"  # in the meta of a trace whose sizes are those of an example


class TraceFailed(UnsupportedModel):
    """torch.fx cannot trace the module at `path` ("" for the model itself)."""

    path: str = ""


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


class OutsideTree(TraceFailed):
    """The model calls `module`, which is not among its modules()."""

    module: nn.Module


class _Tracer(fx.Tracer):
    """fails: the line of a check of channels or rank that is to fail, see `to_bool`."""

    def __init__(self, whole: Collection[nn.Module], fails: str = "") -> None:
        super().__init__(param_shapes_constant=True)
        self._whole, self._fails = set(whole), fails
        self.checks: set[str] = set()
        self.failed: str | None = None
        self.outside: nn.Module | None = None

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As the base class, and remember the innermost module that raises."""
        if m not in (self.submodule_paths or {}):
            self.outside = m
            raise NameError(f"a {type(m).__name__} is called that is held outside the module tree")
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = self.path_of_module(m)
            raise

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """As the base class, and note the line of the model's code, for messages."""
        proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["line"] = calling_line()
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A check of the number of channels or axes passes; other decisions on values stop the
        trace.
        """
        passes = decide_check(obj.node)
        if passes is None:
            return super().to_bool(obj)
        line = calling_line()
        self.checks.add(line)
        return passes != (line == self._fails)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch.nn and ternary_ops.nn stay whole, and subclasses that compute alike."""
        return m in self._whole or layer_class(m) is not None


def trace(
    model: nn.Module, whole: Collection[nn.Module] = (), signature: Signature | None = None
) -> fx.GraphModule:
    """Symbolic trace of `model.forward` in eval mode; the graph module shares its submodules with
    `model`, and layers written as functions are modules too (`functional_layers`).

    It takes one tensor, as `signature` says, and returns one, or a tuple where the model returns
    several and none is named. All other arguments of forward are constants; the modules in `whole`
    are not looked into. Raises TraceFailed, an UnsupportedModel, with the reason when control flow
    depends on a tensor, or anything else stops the trace.
    """
    signature = signature_of(model) if signature is None else signature
    with evaluating(model):
        graph, entry = _graph(model, whole, signature)
    drop_asserts(graph)
    drop_unused_sizes(graph)
    traced = fx.GraphModule(entry, graph)  # which has the constants that the trace met
    name_inplace_results(traced.graph)
    name_values(traced.graph, getattr(model, "meta", {}).get(INPUT_VALUE))
    name_layers_(traced, model)
    return traced


def _graph(
    model: nn.Module, whole: Collection[nn.Module], signature: Signature
) -> tuple[fx.Graph, nn.Module]:
    """What torch.fx traces, and of which module; raises TraceFailed."""
    tracer, entry = _Tracer(whole), _entry(model, signature)
    try:
        graph = tracer.trace(entry)
    except Exception as error:  # the model's own code runs here: whatever it raises is the reason
        if tracer.outside is not None:
            raise _outside(tracer, model) from error
        where = f"{tracer.failed} of " if tracer.failed else ""
        failed = TraceFailed(
            need(
                "a model that torch.fx can trace (no control flow on tensors)",
                f"{type(error).__name__} from {where}{type(model).__name__}: {error}",
                "Rewrite that line with tensor operations, or give it a module of its own.",
            )
        )
        failed.path = tracer.failed or ""
        raise failed from error
    for line in sorted(tracer.checks):
        _must_fail(_Tracer(whole, line), entry, type(model).__name__)
    return graph, entry


def _outside(tracer: _Tracer, model: nn.Module) -> OutsideTree:
    """The error for a module that the model calls but does not have."""
    what = "the modules that a model calls are in its module tree"
    got = (
        f"a {type(tracer.outside).__name__} held elsewhere, called by {tracer.failed or 'forward'}"
    )
    do = "Hold it as an attribute, or in nn.ModuleList or nn.ModuleDict."
    error = OutsideTree(need(what, f"{got} of {type(model).__name__}", do))
    error.path, error.module = tracer.failed or "", cast(nn.Module, tracer.outside)
    return error


def _must_fail(tracer: _Tracer, entry: nn.Module, kind: str) -> None:
    """A comparison of the number of channels or axes is a check if the other outcome raises an
    error, and control flow otherwise.
    """
    try:
        tracer.trace(entry)
    except Exception:  # the model's own: which one does not matter
        return
    what = "a model that torch.fx can trace (no control flow on the number of channels or axes)"
    raise TraceFailed(need(what, f"a branch in {kind}", "Decide it when the model is made."))


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
    model: nn.Module, signature: Signature | None = None
) -> tuple[fx.GraphModule, list[TraceFailed]]:
    """As `trace`, with the modules that cannot be traced kept whole: why, one error each. Raises
    TraceFailed where that is the model itself.
    """
    failed: list[TraceFailed] = []
    while True:
        try:
            parts = [model.get_submodule(error.path) for error in failed]
            return trace(model, parts, signature), failed
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
