# SPDX-License-Identifier: Apache-2.0
"""Activations, sums and products: each value by itself, or two of one place."""

from __future__ import annotations

from torch import fx

from ternary_ops.compiler.call import Call, Unsupported, shape_of
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import channelwise, read_slopes
from ternary_ops.compiler.step import Step
from ternary_ops.graph import torch_ops as torch_
from ternary_ops.graph.nodes import clamp_bounds, is_add, operator_of
from ternary_ops.graph.torch_ops import TorchOp


def _same(call: Call) -> Step:
    """What changes nothing."""
    return call.input()


def _clamp(call: Call) -> Step:
    bounds = clamp_bounds(call.node)
    return call.refuse() if bounds is None else Step("clamp", [call.input()], clamp=bounds)


def activation(x: Step, fn: str, *params: float) -> Step:
    """A function of `reference.activations`."""
    return Step("activation", [x], {"fn": fn, "params": params})


def _function(fn: str) -> Row:
    """A function of one number; its parameters are the operator's own arguments, in this order."""

    def make(call: Call) -> Step:
        at = call.arguments()
        params = (float(v) for name, v in at.items() if name not in ("input", "inplace"))
        return activation(call.input(), fn, *params)

    return Row(make)


def _gelu(call: Call) -> Step:
    exact = call.arguments()["approximate"] == "none"
    return activation(call.input(), "gelu" if exact else "gelu_tanh")


def _prelu(call: Call) -> Step:
    module = call.module
    if module.num_parameters == 1:
        return activation(call.input(), "leaky_relu", float(module.weight.detach()))
    x, slopes = call.input(4), read_slopes(call.name, module)
    return Step("prelu", [x], {"slopes": channelwise(call.name, slopes, None)})


def _negation(call: Call) -> Step:
    return activation(call.input(), "affine", -1.0, 0.0)


def _arithmetic(call: Call) -> Step:
    """Of two tensors, or a tensor and a number on either side."""
    node, op = call.node, call.operator
    if is_add(node):
        return _sum(call)
    if len(node.args) != 2 or node.kwargs:
        raise Unsupported("two operands are supported, and no other argument")
    a, b = node.args
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        return _of_tensors(call, _spread(a), _spread(b))
    if isinstance(b, (int, float)) and isinstance(a, fx.Node):
        if op is torch_.DIV and b == 0:
            raise Unsupported("it divides by zero")
        return activation(call.step(a), "affine", *_with_number(op, float(b)))
    if isinstance(a, (int, float)) and isinstance(b, fx.Node):
        if op is torch_.DIV:
            raise Unsupported("it divides by a tensor")
        return activation(call.step(b), "affine", *_from_number(op, float(a)))
    raise Unsupported("its operands are not tensors from the input and numbers")


def _with_number(op: TorchOp | None, number: float) -> tuple[float, float]:
    """Factor and offset of x + number, x - number, x * number and x / number."""
    if op is torch_.ADD or op is torch_.SUB:
        return 1.0, number if op is torch_.ADD else -number
    return number if op is torch_.MUL else 1 / number, 0.0


def _from_number(op: TorchOp | None, number: float) -> tuple[float, float]:
    """Factor and offset of number + x, number - x and number * x."""
    if op is torch_.MUL:
        return number, 0.0
    return 1.0 if op is torch_.ADD else -1.0, number


def _sum(call: Call) -> Step:
    shapes = [shape_of(operand) for operand in call.node.all_input_nodes]
    if len(set(shapes)) != 1:
        raise Unsupported(f"it adds shapes {shapes}")
    return Step("add", [call.step(x) for x in call.node.args if isinstance(x, fx.Node)])


def _of_tensors(call: Call, a: fx.Node, b: fx.Node) -> Step:
    """A difference, or a product of one shape or with a gate [N, C, 1, 1]."""
    op, left, right = call.operator, shape_of(a), shape_of(b)
    if op is torch_.DIV:
        raise Unsupported("it divides by a tensor")
    if left == right and left:
        first, second = call.step(a), call.step(b)
        if op is torch_.MUL:
            return Step("mul", [first, second])
        return Step("add", [first, activation(second, "affine", -1.0, 0.0)])
    if op is torch_.MUL and left and right and len(left) == len(right) == 4:
        if left[:2] == right[:2] and (1, 1) in (left[2:], right[2:]):
            a, b = (a, b) if right[2:] == (1, 1) else (b, a)
            return Step("mul", [call.step(a), call.step(b)])
    raise Unsupported(f"it combines shapes {left} and {right}")


def _spread(node: fx.Node) -> fx.Node:
    """What an expand spreads over an image; a product does that itself."""
    spreads = operator_of(node) is torch_.EXPAND and isinstance(node.args[0], fx.Node)
    return node.args[0] if spreads else node  # type: ignore[return-value]


def _expand(call: Call) -> Step:
    """A gate [N, C, 1, 1] spread over an image, as squeeze-excite writes it."""
    before = shape_of(call.source)
    products = all(operator_of(user) is torch_.MUL for user in call.node.users)
    return call.input() if before and before[2:] == (1, 1) and products else call.refuse()


ROWS = {
    torch_.RELU: Row(_clamp),
    torch_.RELU6: Row(_clamp),
    torch_.HARDTANH: Row(_clamp),
    torch_.CLAMP: Row(_clamp),
    torch_.FAKE_QUANTIZE: Row(_clamp, ""),
    torch_.LEAKY_RELU: _function("leaky_relu"),
    torch_.PRELU: Row(_prelu),
    torch_.SILU: _function("silu"),
    torch_.HARDSWISH: _function("hardswish"),
    torch_.HARDSIGMOID: _function("hardsigmoid"),
    torch_.SIGMOID: _function("sigmoid"),
    torch_.TANH: _function("tanh"),
    torch_.GELU: Row(_gelu),
    torch_.ELU: _function("elu"),
    torch_.SOFTPLUS: _function("softplus"),
    torch_.MISH: _function("mish"),
    torch_.EXP: _function("exp"),
    torch_.ADD: Row(_arithmetic),
    torch_.SUB: Row(_arithmetic),
    torch_.MUL: Row(_arithmetic, "products of two tensors or with numbers, squeeze-excite gates"),
    torch_.DIV: Row(_arithmetic, "quotients by numbers"),
    torch_.NEG: Row(_negation, ""),
    torch_.EXPAND: Row(_expand, ""),
    torch_.CONTIGUOUS: Row(_same, ""),
    torch_.IDENTITY: Row(_same),
    torch_.DROPOUT: Row(_same),
}
