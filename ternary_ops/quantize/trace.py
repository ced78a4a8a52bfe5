# SPDX-License-Identifier: Apache-2.0
"""One way to see a network as a graph, and the one rule of what fuses into a layer.

`trace` runs torch.fx with every weighted or stateful layer as a leaf. `fused_chain` says which
nodes become the epilogue of a layer (BatchNorm, residual add, clamp-like activation, PReLU).
Calibration stores the range of a chain's last value, folding needs its BatchNorm, and lowering
emits the chain as one operator: all three must agree, so the rule stands here once.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.quantize.inplace import name_inplace_results

_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU: tuple[Any, ...] = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_CLAMP: tuple[Any, ...] = (torch.clamp, torch.clamp_, torch.clip, "clamp", "clamp_", "clip")
_HARDTANH: tuple[Any, ...] = (F.hardtanh, F.hardtanh_)
_LEAKY: tuple[Any, ...] = (F.leaky_relu, F.leaky_relu_)
_PASS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


class TraceFailed(UnsupportedModel):
    """torch.fx cannot trace the module at `path` ("" for the model itself)."""

    path: str = ""


class _Tracer(fx.Tracer):
    def __init__(self, whole: Collection[nn.Module]) -> None:
        super().__init__()
        self._whole = set(whole)
        self.failed: str | None = None

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As the base class, and remember the innermost module that raises."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = self.path_of_module(m)
            raise

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """nn.*, ternary_ops.nn.* and whatever subclasses a weighted nn layer stay whole."""
        whole = m in self._whole or _ours(m) or isinstance(m, _WEIGHTED)
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, whole: Collection[nn.Module] = ()) -> fx.GraphModule:
    """Symbolic trace of `model.forward`; the graph module shares its submodules with `model`.

    Arguments of forward that have a default are constants at that default; the modules in `whole`
    are not looked into. Raises TraceFailed, an UnsupportedModel, with the reason when control flow
    depends on a tensor, or anything else stops the trace.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    tracer = _Tracer(whole)
    try:
        graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:  # the model's own code runs here: whatever it raises is the reason
        where = f"{tracer.failed} of " if tracer.failed else ""
        failed = TraceFailed(
            need(
                "torch.fx must be able to trace the model (no control flow on tensors)",
                f"{type(error).__name__} from {where}{type(model).__name__}: {error}",
                "Rewrite that line with tensor operations, or give it a module of its own.",
            )
        )
        failed.path = tracer.failed or ""
        raise failed from error
    _drop_constant_arguments(graph)
    traced = fx.GraphModule(model, graph)
    name_inplace_results(traced.graph)
    traced.recompile()
    return traced


def trace_around(model: nn.Module) -> tuple[fx.GraphModule, list[TraceFailed]]:
    """As `trace`, with the modules that cannot be traced kept whole: why, one error each. Raises
    TraceFailed where that is the model itself.
    """
    failed: list[TraceFailed] = []
    while True:
        try:
            return trace(model, [model.get_submodule(error.path) for error in failed]), failed
        except TraceFailed as error:
            if not error.path:
                raise
            failed.append(error)


def _drop_constant_arguments(graph: fx.Graph) -> None:
    """Remove what `concrete_args` leaves: asserts on the defaults, then their placeholders."""
    for node in list(graph.nodes):
        if node.op == "call_function" and "assert" in getattr(node.target, "__name__", ""):
            compared = node.all_input_nodes
            graph.erase_node(node)
            for dead in compared:
                if not dead.users and dead.op != "placeholder":
                    graph.erase_node(dead)
    for node in [n for n in graph.nodes if n.op == "placeholder"][1:]:
        if not node.users:
            graph.erase_node(node)


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a call_module node calls, otherwise None."""
    owner = node.graph.owning_module
    if node.op != "call_module" or owner is None:
        return None
    return owner.get_submodule(str(node.target))


def is_layer(node: fx.Node) -> bool:
    """True for a convolution or linear layer: nn's own (a subclass may do anything), or ours."""
    module = module_of(node)
    return module is not None and (_ours(module) or type(module) in (nn.Conv2d, nn.Linear))


def is_pass(node: fx.Node) -> bool:
    """True for what changes nothing in eval mode: Identity, Dropout and its kin, contiguous()."""
    same = node.op == "call_method" and node.target == "contiguous"
    return _drops(node) or same or isinstance(module_of(node), _PASS)


def _drops(node: fx.Node) -> bool:
    """A dropout function, or torchvision's stochastic depth (which fx does not look into)."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and (node.target in _DROPOUTS or name == "stochastic_depth")


def is_batchnorm(node: fx.Node) -> bool:
    """True for a BatchNorm that has running statistics, the only kind that folds."""
    module = module_of(node)
    return type(module) in _BATCH_NORMS and getattr(module, "running_mean", None) is not None


def is_add(node: fx.Node) -> bool:
    """True for the plain sum of two traced tensors (no alpha, no constant operand)."""
    call = node.op in ("call_function", "call_method") and node.target in _ADD
    tensors = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return call and tensors and not node.kwargs


def clamp_bounds(node: fx.Node) -> tuple[float | None, float | None] | None:
    """(lo, hi) of an activation that clamps: ReLU, ReLU6, Hardtanh, clamp, and of
    torch.fake_quantize_per_tensor_affine to 8 bits, which rounds as well: programs do where they
    keep codes. None for other nodes.
    """
    module = module_of(node)
    if isinstance(module, nn.ReLU):
        return 0.0, None
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _RELU:
        return 0.0, None
    if node.target is F.relu6:
        return 0.0, 6.0
    if node.target in _CLAMP:
        return _bounds(node, ("min", "max"), (None, None))
    if node.target in _HARDTANH:
        return _bounds(node, ("min_val", "max_val"), (-1.0, 1.0))
    if node.target is torch.fake_quantize_per_tensor_affine:
        return _code_bounds(node)
    return None


def _code_bounds(node: fx.Node) -> tuple[float, float] | None:
    """What the lowest and highest of 256 codes of a fake-quantized value stand for."""
    numbers = node.args[1:]
    if len(numbers) != 4 or not all(isinstance(n, (int, float)) for n in numbers):
        return None
    scale, zero, lowest, highest = (float(n) for n in numbers)  # type: ignore[arg-type]
    if highest - lowest != 255:
        return None
    return (lowest - zero) * scale, (highest - zero) * scale


def _bounds(
    node: fx.Node, names: tuple[str, str], default: tuple[float | None, float | None]
) -> tuple[float | None, float | None] | None:
    """Two constant arguments of a call, None when one of them is traced."""
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    found: list[float | None] = []
    for name, fallback in zip(names, default, strict=True):
        value = given.get(name, fallback)
        if not (value is None or isinstance(value, (int, float))):
            return None
        found.append(None if value is None else float(value))
    return found[0], found[1]


def is_slope(node: fx.Node) -> bool:
    """True for a PReLU or a leaky ReLU."""
    call = node.op == "call_function" and node.target in _LEAKY
    return call or isinstance(module_of(node), (nn.PReLU, nn.LeakyReLU))


def _is_convolution(node: fx.Node) -> bool:
    return hasattr(module_of(node), "kernel_size")


@dataclass
class Chain:
    """A layer and what fuses behind it, in this order; `end` is the node of the chain's value."""

    layer: fx.Node
    end: fx.Node
    batchnorm: fx.Node | None = None
    add: fx.Node | None = None
    residual: fx.Node | None = None  # the add's other operand
    clamps: list[fx.Node] = field(default_factory=list)
    slope: fx.Node | None = None  # a PReLU or leaky ReLU, in place of clamps


def fused_chain(layer: fx.Node) -> Chain:
    """What fuses behind the call_module node `layer`; a link needs a value with a single user.

    A sum belongs to the chain of its first operand; to the second's only if the first is no chain.
    """
    chain = Chain(layer, layer)
    while len(chain.end.users) == 1:
        (user,) = chain.end.users
        last = bool(chain.clamps) or chain.slope is not None
        if is_batchnorm(user) and not (chain.batchnorm or chain.add or last):
            chain.batchnorm = user
        elif is_add(user) and not (chain.add or last) and _owns_sum(chain.end, user):
            chain.add = user
            (chain.residual,) = (a for a in user.all_input_nodes if a is not chain.end)
        elif is_slope(user) and _is_convolution(layer) and not (chain.add or last):
            chain.slope = user
        elif clamp_bounds(user) is not None and chain.slope is None:
            chain.clamps.append(user)
        elif not is_pass(user):
            break
        chain.end = user
    return chain


def _owns_sum(operand: fx.Node, add: fx.Node) -> bool:
    first, second = add.args
    if first is second:
        return False
    return first is operand or not (isinstance(first, fx.Node) and _ends_bare_chain(first))


def _ends_bare_chain(node: fx.Node) -> bool:
    """True when `node` is a layer's own (normalized) value that only one node uses."""
    normalized = False
    while len(node.users) == 1 and not is_layer(node):
        previous = node.args[0] if node.args else None
        passes = is_pass(node) or (is_batchnorm(node) and not normalized)
        if not passes or not isinstance(previous, fx.Node):
            return False
        normalized = normalized or is_batchnorm(node)
        node = previous
    return len(node.users) == 1


def _ours(module: nn.Module) -> bool:
    return type(module).__module__.startswith("ternary_ops.nn")
