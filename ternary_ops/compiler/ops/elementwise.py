# SPDX-License-Identifier: Apache-2.0
"""Activations, sums and products: each value by itself, or two of one place."""

from __future__ import annotations

from torch import fx

from ternary_ops.compiler.call import Call, Unsupported, shape_of
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import channelwise, read_slopes
from ternary_ops.compiler.step import Step
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import clamp_bounds, is_add, operator_of
from ternary_ops.graph.torch_ops import TorchOp


def _same(call: Call) -> Step:
    """The input itself: an identity."""
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


def _rrelu(call: Call) -> Step:
    """In eval mode the slope is the mean of its range."""
    at = call.arguments()
    return activation(call.input(), "leaky_relu", (at["lower"] + at["upper"]) / 2)


def power(x: Step, exponent: float) -> Step:
    """x ** exponent, by the function that is exact for it."""
    if exponent == 1:
        return x
    known = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if exponent in known:
        return activation(x, known[exponent])
    return activation(x, "pow", exponent)


def _power(call: Call) -> Step:
    exponent = call.arguments()["exponent"]
    if isinstance(exponent, bool) or not isinstance(exponent, (int, float)):
        raise Unsupported("its exponent is not a number")
    return power(call.input(), float(exponent))


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
        if op is torch_ops.DIV and b == 0:
            raise Unsupported("it divides by zero")
        return activation(call.step(a), "affine", *_with_number(op, float(b)))
    if isinstance(a, (int, float)) and isinstance(b, fx.Node):
        if op is torch_ops.DIV:
            return activation(activation(call.step(b), "reciprocal"), "affine", float(a), 0.0)
        return activation(call.step(b), "affine", *_from_number(op, float(a)))
    raise Unsupported("its operands are not tensors from the input and numbers")


def _with_number(op: TorchOp | None, number: float) -> tuple[float, float]:
    """Factor and offset of x + number, x - number, x * number and x / number."""
    if op is torch_ops.ADD or op is torch_ops.SUB:
        return 1.0, number if op is torch_ops.ADD else -number
    return number if op is torch_ops.MUL else 1 / number, 0.0


def _from_number(op: TorchOp | None, number: float) -> tuple[float, float]:
    """Factor and offset of number + x, number - x and number * x."""
    if op is torch_ops.MUL:
        return number, 0.0
    return 1.0 if op is torch_ops.ADD else -1.0, number


def _sum(call: Call) -> Step:
    shapes = [shape_of(operand) for operand in call.node.all_input_nodes]
    if len(set(shapes)) != 1:
        raise Unsupported(f"it adds shapes {shapes}")
    return Step("add", [call.step(x) for x in call.node.args if isinstance(x, fx.Node)])


def _of_tensors(call: Call, a: fx.Node, b: fx.Node) -> Step:
    """A difference, or a product of one shape or with a gate [N, C, 1, 1]."""
    op, left, right = call.operator, shape_of(a), shape_of(b)
    if op is torch_ops.DIV:
        raise Unsupported("it divides by a tensor")
    if left == right and left:
        first, second = call.step(a), call.step(b)
        if op is torch_ops.MUL:
            return Step("mul", [first, second])
        return Step("add", [first, activation(second, "affine", -1.0, 0.0)])
    if op is torch_ops.MUL and left and right and len(left) == len(right) == 4:
        if left[:2] == right[:2] and (1, 1) in (left[2:], right[2:]):
            a, b = (a, b) if right[2:] == (1, 1) else (b, a)
            return Step("mul", [call.step(a), call.step(b)])
    raise Unsupported(f"it combines shapes {left} and {right}")


def _spread(node: fx.Node) -> fx.Node:
    """The operand of an expand, else the node itself: `mul` broadcasts over an image anyway."""
    spreads = operator_of(node) is torch_ops.EXPAND and isinstance(node.args[0], fx.Node)
    return node.args[0] if spreads else node  # type: ignore[return-value]


def _expand(call: Call) -> Step:
    """A gate [N, C, 1, 1] spread over an image, as squeeze-excite writes it."""
    before = shape_of(call.source)
    products = all(operator_of(user) is torch_ops.MUL for user in call.node.users)
    return call.input() if before and before[2:] == (1, 1) and products else call.refuse()


ROWS = {
    torch_ops.RELU: Row(_clamp),
    torch_ops.RELU6: Row(_clamp),
    torch_ops.HARDTANH: Row(_clamp),
    torch_ops.CLAMP: Row(_clamp),
    torch_ops.FAKE_QUANTIZE: Row(_clamp, ""),
    torch_ops.LEAKY_RELU: _function("leaky_relu"),
    torch_ops.PRELU: Row(_prelu),
    torch_ops.SILU: _function("silu"),
    torch_ops.HARDSWISH: _function("hardswish"),
    torch_ops.HARDSIGMOID: _function("hardsigmoid"),
    torch_ops.SIGMOID: _function("sigmoid"),
    torch_ops.TANH: _function("tanh"),
    torch_ops.GELU: Row(_gelu),
    torch_ops.ELU: _function("elu"),
    torch_ops.SOFTPLUS: _function("softplus"),
    torch_ops.MISH: _function("mish"),
    torch_ops.CELU: _function("celu"),
    torch_ops.SELU: _function("selu"),
    torch_ops.RRELU: Row(_rrelu),
    torch_ops.LOGSIGMOID: _function("logsigmoid"),
    torch_ops.SOFTSIGN: _function("softsign"),
    torch_ops.TANHSHRINK: _function("tanhshrink"),
    torch_ops.SOFTSHRINK: _function("softshrink"),
    torch_ops.HARDSHRINK: _function("hardshrink"),
    torch_ops.THRESHOLD: _function("threshold"),
    torch_ops.EXP: _function("exp"),
    torch_ops.LOG: _function("log"),
    torch_ops.ABS: _function("abs"),
    torch_ops.SQUARE: _function("square"),
    torch_ops.SQRT: _function("sqrt"),
    torch_ops.RSQRT: _function("rsqrt"),
    torch_ops.RECIPROCAL: _function("reciprocal"),
    torch_ops.POW: Row(_power, "powers by numbers"),
    torch_ops.ERF: _function("erf"),
    torch_ops.SIN: _function("sin"),
    torch_ops.COS: _function("cos"),
    torch_ops.ADD: Row(_arithmetic),
    torch_ops.SUB: Row(_arithmetic),
    torch_ops.MUL: Row(
        _arithmetic, "products of two tensors or with numbers, squeeze-excite gates"
    ),
    torch_ops.DIV: Row(_arithmetic, "quotients by and of numbers"),
    torch_ops.NEG: Row(_negation, ""),
    torch_ops.EXPAND: Row(_expand, ""),
    torch_ops.CONTIGUOUS: Row(_same, ""),
    torch_ops.IDENTITY: Row(_same),
    torch_ops.DROPOUT: Row(_same),
}
