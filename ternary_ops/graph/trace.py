# SPDX-License-Identifier: Apache-2.0
"""One way to see a network as a graph, and the one rule of what fuses into a layer.

`trace` runs torch.fx with every weighted or stateful layer as a leaf. `fused_chain` says which
nodes become the epilogue of a layer (BatchNorm, residual add, clamp-like activation, PReLU).
Calibration stores the range of a chain's last value, folding needs its BatchNorm, and lowering
emits the chain as one operator: all three must agree, so the rule stands here once.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.inplace import name_inplace_results
from ternary_ops.graph.observed import INPUT_VALUE, name_values
from ternary_ops.graph.signature import Signature, naming_failures, signature_of
from ternary_ops.graph.sizes import decide_channels, drop_unused_sizes

_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU: tuple[Any, ...] = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_CLAMP: tuple[Any, ...] = (torch.clamp, torch.clamp_, torch.clip, "clamp", "clamp_", "clip")
_HARDTANH: tuple[Any, ...] = (F.hardtanh, F.hardtanh_)
_LEAKY: tuple[Any, ...] = (F.leaky_relu, F.leaky_relu_)
_PASS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_DEFAULT = fx.Tracer()
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


class TraceFailed(UnsupportedModel):
    """torch.fx cannot trace the module at `path` ("" for the model itself)."""

    path: str = ""


class OutsideTree(TraceFailed):
    """The model calls `module`, which is not among its modules()."""

    module: nn.Module


class _Tracer(fx.Tracer):
    """fails: the number of a check of channels that is to fail, see `to_bool`."""

    def __init__(self, whole: Collection[nn.Module], fails: int = -1) -> None:
        super().__init__()
        self._whole, self._fails = set(whole), fails
        self.checks = 0
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

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A check of the number of channels passes; other decisions on values stop the trace."""
        passes = decide_channels(obj.node)
        if passes is None:
            return super().to_bool(obj)
        self.checks += 1
        return passes != (self.checks - 1 == self._fails)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """nn.*, ternary_ops.nn.* and whatever subclasses a weighted nn layer stay whole."""
        return m in self._whole or is_leaf(m)


def is_leaf(module: nn.Module) -> bool:
    """True for modules that a trace calls as they are: nn.*, ternary_ops.nn.*, weighted layers."""
    whole = _ours(module) or isinstance(module, _WEIGHTED)
    return whole or _DEFAULT.is_leaf_module(module, "")


def trace(
    model: nn.Module, whole: Collection[nn.Module] = (), signature: Signature | None = None
) -> fx.GraphModule:
    """Symbolic trace of `model.forward`; the graph module shares its submodules with `model`.

    It takes one tensor, as `signature` says, and returns one, or a tuple where the model returns
    several and none is named. All other arguments of forward are constants; the modules in `whole`
    are not looked into. Raises TraceFailed, an UnsupportedModel, with the reason when control flow
    depends on a tensor, or anything else stops the trace.
    """
    signature = signature_of(model) if signature is None else signature
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
    for check in range(tracer.checks):
        _must_fail(_Tracer(whole, check), entry, type(model).__name__)
    drop_unused_sizes(graph)
    traced = fx.GraphModule(entry, graph)  # which has the constants that the trace met
    name_inplace_results(traced.graph)
    name_values(traced.graph, getattr(model, "meta", {}).get(INPUT_VALUE))
    traced.recompile()
    return traced


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
    """A comparison of the number of channels is a check if the other outcome raises an error, and
    control flow otherwise.
    """
    try:
        tracer.trace(entry)
    except Exception:  # the model's own: which one does not matter
        return
    what = "a model that torch.fx can trace (no control flow on the number of channels)"
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
        """What the graph makes of x. Raises UnsupportedModel where it fails."""
        with naming_failures(x):
            return super().run(x)


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
    return type(module) in BATCH_NORMS and getattr(module, "running_mean", None) is not None


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


def links(chain: Chain) -> list[fx.Node]:
    """Every node from the layer to the end of its chain."""
    nodes = [chain.layer]
    while nodes[-1] is not chain.end:
        (user,) = nodes[-1].users
        nodes.append(user)
    return nodes


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
