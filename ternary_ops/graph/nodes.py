# SPDX-License-Identifier: Apache-2.0
"""Traced nodes: their module and operator, and the one rule of what fuses into a layer.

`fused_chain` finds the nodes that become a layer's epilogue (BatchNorm, residual add, clamp-like
activation, PReLU). Calibration stores the range of the chain's last value, folding needs its
BatchNorm, and compiling emits the chain as one operator; all three use this rule, so they agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from math import inf
from types import CodeType, FunctionType
from typing import Any

from torch import fx, nn

from ternary_ops.graph import torch_ops
from ternary_ops.graph.torch_op import REQUIRED, TorchOp

Bounds = tuple[float | None, float | None]
_HOMES = ("torch.nn.", "torch.ao.nn.", "ternary_ops.nn.")
_CONTAINERS = (  # of torch.nn, which a trace looks into
    nn.Sequential,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
_CALLING = ("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__")
_PASS = (torch_ops.IDENTITY, torch_ops.DROPOUT, torch_ops.CONTIGUOUS)
_CLAMPS = (
    torch_ops.RELU,
    torch_ops.RELU6,
    torch_ops.HARDTANH,
    torch_ops.CLAMP,
    torch_ops.FAKE_QUANTIZE,
)


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a call_module node calls, otherwise None."""
    owner = node.graph.owning_module
    if node.op != "call_module" or owner is None:
        return None
    module: Any = owner
    for name in str(node.target).split("."):
        module = module._modules[name]  # as get_submodule, which takes ten times as long
    return module  # type: ignore[no-any-return]


def layer_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn or ternary_ops.nn that says what `module` computes; None where a
    forward of its own does.

    A subclass that computes by its parent's forward, with nothing redefined that this forward uses,
    is of its parent's kind.
    """
    return None if isinstance(module, _CONTAINERS) else _layer_class(type(module))  # type: ignore[arg-type]


def from_torch(kind: type[nn.Module]) -> bool:
    """True for classes of torch.nn and ternary_ops.nn."""
    return f"{kind.__module__}.".startswith(_HOMES)


@cache
def _layer_class(made: type[nn.Module]) -> type[nn.Module] | None:
    own: set[str] = set()
    for kind in made.__mro__:
        if from_torch(kind):
            same = kind is not nn.Module and not own & names_used(kind)
            return kind if same else None
        own |= set(vars(kind))
    return None


@cache
def names_used(kind: type[nn.Module]) -> frozenset[str]:
    """Names that the forward of a class uses, those of its methods included."""
    found, left = set(_CALLING), ["forward"]
    while left:
        name = left.pop()
        method: Any = getattr(kind, name, None)
        if isinstance(method, FunctionType) and (name == "forward" or not hasattr(nn.Module, name)):
            names = _names(method.__code__)
            left += names - found
            found |= names
    return frozenset(found)


def _names(code: CodeType) -> set[str]:
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)


def parent_of(module: nn.Module) -> type[nn.Module]:
    """The nearest class of torch.nn or ternary_ops.nn that a module is an instance of."""
    return next((k for k in type(module).__mro__ if from_torch(k)), nn.Module)


def operator_of(node: fx.Node, module: nn.Module | None = None) -> TorchOp | None:
    """The operator that a node calls; None for what this table does not know.

    module: `module_of(node)`, where the caller has it.
    """
    if node.op == "call_module":
        module = module_of(node) if module is None else module
        kind = None if module is None else layer_class(module)
        return None if kind is None else operator_of_class(kind)
    if node.op not in ("call_function", "call_method"):
        return None
    found = torch_ops.BY_CALL.get(node.target)
    return found or torch_ops.BY_NAME.get(getattr(node.target, "__name__", ""))


def operator_of_class(kind: type[nn.Module]) -> TorchOp | None:
    """The operator that modules of a class of torch.nn or ternary_ops.nn compute."""
    if kind in torch_ops.BY_MODULE:
        return torch_ops.BY_MODULE[kind]
    bases = (torch_ops.BY_MODULE.get(base) for base in kind.__mro__)
    return next((op for op in bases if op is not None and op.subclasses), None)


def readers(node: fx.Node) -> list[fx.Node]:
    """The users of a value that read more than its size."""
    return [user for user in node.users if not is_size(user)]


def is_size(node: fx.Node) -> bool:
    """x.shape, x.size(...), x.ndim, x.dim() and their kin."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def look_up(node: fx.Node) -> tuple[nn.Module | None, TorchOp | None]:
    """The module and the operator of a node."""
    module = module_of(node)
    return module, operator_of(node, module)


def arguments_of(node: fx.Node, op: TorchOp, first: str = "input") -> dict[str, Any] | None:
    """The arguments of a call of `op` by their names, with defaults; the tensor itself is `first`.

    None where an argument is missing, or is one that the table does not know.
    """
    names = (first, *op.arguments)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    found = {first: REQUIRED, **op.arguments, **given}
    known = len(node.args) <= len(names) and set(found) <= set(names)
    return found if known and REQUIRED not in found.values() else None


def two(value: object) -> tuple[int, int] | None:
    """An integer for rows and columns, or one or two in a sequence, as two; otherwise None."""
    given = value if isinstance(value, (tuple, list)) else (value,)
    numbers = [number for number in given if isinstance(number, int)]
    if len(given) not in (1, 2) or len(numbers) != len(given):
        return None
    return numbers[0], numbers[-1]


def is_ours(module: nn.Module) -> bool:
    """True for the layers of `ternary_ops.nn`."""
    return type(module).__module__.startswith("ternary_ops.nn")


def is_layer(node: fx.Node) -> bool:
    """True for a convolution or linear layer of torch.nn's kind, or ours."""
    module = module_of(node)
    return module is not None and (is_ours(module) or layer_class(module) in (nn.Conv2d, nn.Linear))


def is_pass(node: fx.Node) -> bool:
    """True for what changes nothing in eval mode: Identity, Dropout and its kin, contiguous()."""
    return operator_of(node) in _PASS


def is_batchnorm(node: fx.Node) -> bool:
    """True for a BatchNorm that has running statistics, the only kind that folds."""
    module = module_of(node)
    known = module is not None and layer_class(module) in torch_ops.BATCH_NORM.modules
    return known and getattr(module, "running_mean", None) is not None


def is_add(node: fx.Node) -> bool:
    """True for the plain sum of two traced tensors (no alpha, no constant operand)."""
    tensors = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return tensors and not node.kwargs and operator_of(node) is torch_ops.ADD


def is_slope(node: fx.Node) -> bool:
    """True for a PReLU or a leaky ReLU."""
    module = module_of(node)
    leaky = operator_of(node, module) is torch_ops.LEAKY_RELU
    return leaky or isinstance(module, (nn.PReLU, nn.LeakyReLU))


def clamp_bounds(node: fx.Node) -> Bounds | None:
    """(lo, hi) of an activation that clamps: ReLU, ReLU6, Hardtanh, clamp, and of
    torch.fake_quantize_per_tensor_affine to 8 bits, which rounds as well: programs do where they
    keep codes. None for other nodes.
    """
    module = module_of(node)
    op = operator_of(node, module)
    if op not in _CLAMPS:
        return None
    if op is torch_ops.RELU:
        return 0.0, None
    if op is torch_ops.RELU6:
        return 0.0, 6.0
    if op is torch_ops.FAKE_QUANTIZE:
        return _code_bounds(node)
    if module is not None:  # ReLU6 is a Hardtanh
        return float(module.min_val), float(module.max_val)  # type: ignore[arg-type]
    return _bounds(node, op)


def _code_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Real values of the lowest and highest of the 256 codes of a fake-quantized value."""
    numbers = node.args[1:]
    if len(numbers) != 4 or not all(isinstance(n, (int, float)) for n in numbers):
        return None
    scale, zero, lowest, highest = (float(n) for n in numbers)  # type: ignore[arg-type]
    if highest - lowest != 255:
        return None
    return (lowest - zero) * scale, (highest - zero) * scale


def _bounds(node: fx.Node, op: TorchOp) -> Bounds | None:
    """The two constant arguments of a clamp, None when one of them is traced. What bounds nothing
    is none.
    """
    at: dict[str, Any] = {**op.arguments}
    at |= dict(zip(op.arguments, node.args[1:], strict=False)) | dict(node.kwargs)
    found: list[float | None] = []
    for name in op.arguments:
        if not (at[name] is None or isinstance(at[name], (int, float))):
            return None
        found.append(None if at[name] is None else float(at[name]))
    lo, hi = found
    return None if lo == -inf else lo, None if hi == inf else hi


@dataclass
class Chain:
    """A layer and the nodes that fuse into it, in this order; `end` makes the chain's value.

    links: every node from the layer to the end; modules: what they call, None for functions.
    """

    layer: fx.Node
    end: fx.Node
    links: list[fx.Node]
    modules: list[nn.Module | None]
    batchnorm: fx.Node | None = None
    add: fx.Node | None = None
    residual: fx.Node | None = None  # the add's other operand
    clamps: list[fx.Node] = field(default_factory=list)
    slope: fx.Node | None = None  # a PReLU or leaky ReLU, in place of clamps


def fused_chain(layer: fx.Node) -> Chain:
    """Chain that fuses behind the call_module node `layer`; each link's value has a single user.

    A sum joins the chain of its first operand; the second's only if the first is no chain.
    """
    module = module_of(layer)
    chain, convolves = Chain(layer, layer, [layer], [module]), hasattr(module, "kernel_size")
    while len(users := readers(chain.end)) == 1:
        user = users[0]
        last = bool(chain.clamps) or chain.slope is not None
        if is_batchnorm(user) and not (chain.batchnorm or chain.add or last):
            chain.batchnorm = user
        elif is_add(user) and not (chain.add or last) and _owns_sum(chain.end, user):
            chain.add = user
            (chain.residual,) = (a for a in user.all_input_nodes if a is not chain.end)
        elif is_slope(user) and convolves and not (chain.add or last):
            chain.slope = user
        elif clamp_bounds(user) is not None and chain.slope is None:
            chain.clamps.append(user)
        elif not is_pass(user):
            break
        chain.end = user
        chain.links.append(user)
        chain.modules.append(module_of(user))
    return chain


def fused_chains(graph: fx.Graph) -> dict[fx.Node, Chain]:
    """The chain of every node that belongs to one."""
    chains = [fused_chain(node) for node in graph.nodes if is_layer(node)]
    return {link: chain for chain in chains for link in chain.links}


def _owns_sum(operand: fx.Node, add: fx.Node) -> bool:
    first, second = add.args
    if first is second:
        return False
    return first is operand or not (isinstance(first, fx.Node) and _ends_bare_chain(first))


def _ends_bare_chain(node: fx.Node) -> bool:
    """True when `node` is a layer's own (normalized) value that only one node uses."""
    normalized = False
    while len(readers(node)) == 1 and not is_layer(node):
        previous = node.args[0] if node.args else None
        passes = is_pass(node) or (is_batchnorm(node) and not normalized)
        if not passes or not isinstance(previous, fx.Node):
            return False
        normalized = normalized or is_batchnorm(node)
        node = previous
    return len(readers(node)) == 1
