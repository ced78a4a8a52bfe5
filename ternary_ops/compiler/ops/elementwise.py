# SPDX-License-Identifier: Apache-2.0
"""Activations, sums and products: each value by itself, or two of one place."""

from __future__ import annotations

from typing import Any

from ternary_ops.compiler.arrange import channels_at, joined_axes
from ternary_ops.compiler.axes import Value
from ternary_ops.compiler.call import Call
from ternary_ops.compiler.combine import paired
from ternary_ops.compiler.constants import scaled, with_bias
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.read_layers import channelwise, read_slopes
from ternary_ops.compiler.reduced import activation, combined, difference
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import clamp_bounds
from ternary_ops.graph.torch_op import TorchOp


def _same(call: Call) -> Value:
    """The input itself: an identity."""
    return call.value()


def _clamp(call: Call) -> Value | Step:
    bounds = clamp_bounds(call.node)
    if bounds is None:
        call.refuse()
    x = call.value()
    step = Step("clamp", [x.step], clamp=bounds)
    return step if x.as_traced else x.of(step)


def _function(fn: str) -> Row:
    """A function of one number; its parameters are the operator's own arguments, in this order."""

    def make(call: Call) -> Value:
        at = call.arguments()
        params = (float(v) for name, v in at.items() if name not in ("input", "inplace"))
        return activation(call.value(), fn, *params)

    return Row(make)


def _gelu(call: Call) -> Value:
    exact = call.arguments()["approximate"] == "none"
    return activation(call.value(), "gelu" if exact else "gelu_tanh")


def _prelu(call: Call) -> Value:
    module = call.module
    if module.num_parameters == 1:
        return activation(call.value(), "leaky_relu", float(module.weight.detach()))
    x, slopes = channels_at(call.value(), 1, (4,)), read_slopes(call.name, module)
    return x.of(Step("prelu", [x.step], {"slopes": channelwise(call.name, slopes, None)}))


def _rrelu(call: Call) -> Value:
    """In eval mode the slope is the mean of its range."""
    at = call.arguments()
    return activation(call.value(), "leaky_relu", (at["lower"] + at["upper"]) / 2)


def _power(call: Call) -> Value:
    """x ** number, by the function that is exact for it."""
    if len(call.node.args) != 2 or call.node.kwargs:
        raise Unsupported("a base and an exponent are supported, and no other argument")
    x, exponent = (call.operand(operand) for operand in call.node.args)
    if not isinstance(x, Value) or not isinstance(exponent, float):
        raise Unsupported("its exponent is not a number")
    known = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if exponent == 1:
        return x
    if exponent in known:
        return activation(x, known[exponent])
    return activation(x, "pow", exponent)


def _negation(call: Call) -> Value:
    return activation(call.value(), "affine", -1.0, 0.0)


def _arithmetic(call: Call) -> Value | Step:
    """Of two tensors, or a tensor and a number on either side."""
    node, op = call.node, call.operator
    if len(node.args) != 2 or node.kwargs:
        raise Unsupported("two operands are supported, and no other argument")
    x, y = (call.operand(operand) for operand in node.args)
    if isinstance(x, Value) and isinstance(y, Value):
        return _of_tensors(call, x, y)
    if isinstance(x, Value) and isinstance(y, float):
        if op is torch_ops.DIV and y == 0:
            raise Unsupported("it divides by zero")
        return activation(x, "affine", *_with_number(op, y))
    if isinstance(y, Value) and isinstance(x, float):
        if op is torch_ops.DIV:
            return activation(activation(y, "reciprocal"), "affine", x, 0.0)
        return activation(y, "affine", *_from_number(op, x))
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


def _of_tensors(call: Call, x: Value, y: Value) -> Value | Step:
    """A sum, a difference, a product or a quotient, along axes of size 1 as torch has it."""
    op, a = call.operator, call.node.args[0]
    if op is torch_ops.DIV:
        y = activation(y, "reciprocal")
    if op is torch_ops.SUB:
        y = activation(y, "affine", -1.0, 0.0)
    in_chain = call.chain is not None and call.chain.add is call.node
    if in_chain and call.chain is not None and call.chain.residual is a:
        x, y = y, x  # the layer's value comes first
    name = "add" if op in (torch_ops.ADD, torch_ops.SUB) else "mul"
    shapes = [[[atom.sizes for atom in axis] for axis in value.axes] for value in (x, y)]
    if x.as_traced and y.as_traced and shapes[0] == shapes[1]:
        return Step(name, [x.step, y.step])
    if in_chain:
        return _sum_of_layer(call, x, y)
    return scaled(name, x, y) or combined(name, x, y)


def _sum_of_layer(call: Call, made: Value, residual: Value) -> Value:
    """The sum in a layer's chain: the layer's value stays where it is."""
    try:
        x, y, result = paired(made, residual, keep_first=True)
        fits = x.step is made.step and len(x.atoms) == len(y.atoms) == len(joined_axes(result.form))
    except Unsupported:
        fits = False
    if fits:
        return result.of(Step("add", [x.step, y.step]))
    total = with_bias(made, residual)
    if total is None:
        seen = call.leave_chain(made)
        total = combined("add", made, residual)
        total.step.observed = seen
    return total


def _addcmul(call: Call) -> Value:
    """a + value * b * c."""
    names = ("input", *torch_ops.ADDCMUL.arguments)
    at: dict[str, Any] = {"value": 1, **dict(zip(names, call.node.args, strict=False))}
    at |= call.node.kwargs
    a, b, c = (call.value(at[name]) for name in names[:3])
    product = scaled("mul", b, c) or combined("mul", b, c)
    factor = at["value"]
    if not isinstance(factor, (int, float)):
        raise Unsupported("its factor is not a number")
    if factor != 1:
        product = activation(product, "affine", float(factor), 0.0)
    return scaled("add", a, product) or combined("add", a, product)


def _larger(sign: float) -> Row:
    """The larger, or the smaller, of two values: a + max(b - a, 0)."""
    bounds = (0.0, None) if sign > 0 else (None, 0.0)

    def make(call: Call) -> Value:
        x, y = (call.operand(operand) for operand in call.node.args)
        if isinstance(x, float):
            x, y = y, x
        if isinstance(y, float) and isinstance(x, Value):
            limits = (y, None) if sign > 0 else (None, y)
            return x.of(Step("clamp", [x.step], clamp=limits))
        if not isinstance(x, Value) or not isinstance(y, Value):
            raise Unsupported("its operands are not tensors from the input and numbers")
        more = difference(y, x)
        return combined("add", x, more.of(Step("clamp", [more.step], clamp=bounds)))

    return Row(make)


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
    torch_ops.ADDCMUL: Row(_addcmul),
    torch_ops.SUB: Row(_arithmetic),
    torch_ops.MUL: Row(_arithmetic, "products of tensors and with numbers, squeeze-excite gates"),
    torch_ops.DIV: Row(_arithmetic, "quotients"),
    torch_ops.NEG: Row(_negation, ""),
    torch_ops.MAXIMUM: _larger(1.0),
    torch_ops.MINIMUM: _larger(-1.0),
    torch_ops.IDENTITY: Row(_same),
    torch_ops.DROPOUT: Row(_same),
}
