# SPDX-License-Identifier: Apache-2.0
"""What the matchers ask of a traced node: its input, shapes, constant arguments."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.trace import Interpreter, module_of

# An op of engine.ir and its attributes; or "layer" and "batchnorm", whose module says the rest.
Op: TypeAlias = tuple[str, dict[str, Any]]


_ROUNDING = 1e-3  # relative to the largest output


class Unsupported(Exception):
    """Why a node has no program op; lowering collects them all."""


class Consequence(Unsupported):
    """The node reads one that is unsupported, which is reason enough to name that one only."""


class Shapes(Interpreter):
    """Runs a traced network once and notes every value's shape: None for sizes and constants, ()
    for several tensors at once.
    """

    def run_node(self, n: fx.Node) -> Any:
        """As the base class, and fill n.meta["shape"]; of several tensors, "sizes" (channels)."""
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        if isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value):
            n.meta["shape"] = ()
            n.meta["sizes"] = _channels_of(value, n)
        return value


def run_checked(traced: fx.GraphModule, x: Tensor, expected: Any) -> Any:
    """What the trace makes of x; notes shapes. A trace misses what Python does to tensors behind
    its back: raises UnsupportedModel unless the network made the same, `expected` (None: unknown).
    """
    made = Shapes(traced).run(x.clone())
    if not isinstance(made, Tensor) or not isinstance(expected, Tensor):
        return made  # read_steps says that one output tensor is supported
    finite = expected.nan_to_num(0.0, 0.0, 0.0).abs()
    bound = _ROUNDING * float(finite.max()) if finite.numel() else 0.0
    same = expected.shape == made.shape
    if not (same and torch.allclose(expected, made, rtol=0.0, atol=bound, equal_nan=True)):
        raise UnsupportedModel(
            need(
                "the traced model must compute what the model does",
                "another result for example_input",
                "Avoid x += y on a tensor that has a second name, and randomness in eval mode.",
            )
        )
    return made


def _channels_of(values: Any, node: fx.Node) -> list[int] | None:
    """Channels of each part where parts differ from the whole in channels alone."""
    whole = node.args[0].meta.get("shape") if isinstance(node.args[0], fx.Node) else None
    shapes = [tuple(v.shape) for v in values if isinstance(v, Tensor)]
    if not whole or any(len(s) < 2 or (s[0], *s[2:]) != (whole[0], *whole[2:]) for s in shapes):
        return None
    sizes = [s[1] for s in shapes]
    return sizes if sum(sizes) == whole[1] else None


def source(node: fx.Node) -> fx.Node:
    """The tensor a node works on; raises Unsupported when it is a constant."""
    x = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(x, fx.Node) or shape_of(x) is None:
        raise Unsupported("it does not work on a tensor that comes from the input")
    if shape_of(x) == ():
        raise Consequence
    return x


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """What Shapes noted."""
    shape: tuple[int, ...] | None = node.meta.get("shape")
    return shape


def need_rank(x: fx.Node, rank: int) -> None:
    """Raise Unsupported unless the tensor has `rank` axes."""
    shape = shape_of(x)
    if shape is None or len(shape) != rank:
        raise Unsupported(f"its input has shape {shape}, rank {rank} is supported")


def constants(
    node: fx.Node, defaults: dict[str, Any], free: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Arguments after the tensor, of a functional call or of the module; constants, but `free`."""
    module = module_of(node)
    if module is not None:
        return {name: getattr(module, name, value) for name, value in defaults.items()}
    given = dict(zip(defaults, node.args[1:], strict=False)) | dict(node.kwargs)
    given.pop("input", None)
    found = {**defaults, **given}
    traced = [name for name, v in found.items() if isinstance(v, fx.Node) and name not in free]
    if set(found) != set(defaults) or traced:
        raise Unsupported("its arguments are not all constants this package knows")
    return found


def pair(value: Any) -> tuple[int, int]:
    """An int or two of them as two; raises Unsupported."""
    two = (value, value) if isinstance(value, int) else tuple(value)
    if len(two) == 1:
        two *= 2
    if len(two) != 2 or not all(isinstance(v, int) for v in two):
        raise Unsupported(f"{value!r} is not one or two integers")
    return int(two[0]), int(two[1])


def calls(node: fx.Node, module: type[nn.Module] | None, *targets: Any) -> bool:
    """True for a call of one of these functions or methods, or of exactly this kind of module."""
    called = node.op in ("call_function", "call_method") and node.target in targets
    return called or (module is not None and type(module_of(node)) is module)
