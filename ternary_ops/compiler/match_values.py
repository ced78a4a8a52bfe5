# SPDX-License-Identifier: Apache-2.0
"""Traced nodes that map, multiply, join, move or resize values, as program ops.

As in `ternary_ops.compiler.match`: None for a node that is something else, Unsupported with the
reason for one that no program can say. An attribute "operands" lists the tensors an op reads.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from ternary_ops.compiler.node import (
    Consequence,
    Op,
    Unsupported,
    calls,
    constants,
    need_rank,
    pair,
    shape_of,
    source,
)
from ternary_ops.graph.trace import module_of

_Entry: TypeAlias = tuple[str, Any, tuple[Any, ...], dict[str, Any]]

# name in ops.functions, module, functions and methods, parameters with PyTorch's defaults
_FUNCTIONS: tuple[_Entry, ...] = (
    ("leaky_relu", nn.LeakyReLU, (F.leaky_relu, F.leaky_relu_), {"negative_slope": 0.01}),
    ("hardswish", nn.Hardswish, (F.hardswish,), {}),
    ("hardsigmoid", nn.Hardsigmoid, (F.hardsigmoid,), {}),
    ("silu", nn.SiLU, (F.silu,), {}),
    ("sigmoid", nn.Sigmoid, (torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_", F.sigmoid), {}),
    ("tanh", nn.Tanh, (torch.tanh, torch.tanh_, "tanh", "tanh_", F.tanh), {}),
    ("gelu", nn.GELU, (F.gelu,), {"approximate": "none"}),
    ("elu", nn.ELU, (F.elu, F.elu_), {"alpha": 1.0}),
    ("softplus", nn.Softplus, (F.softplus,), {"beta": 1.0, "threshold": 20.0}),
    ("mish", nn.Mish, (F.mish,), {}),
    ("exp", None, (torch.exp, "exp"), {}),
)
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUB = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
_MUL = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_DIV = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
_NEG = (operator.neg, torch.neg, "neg")
_RESIZE = {
    "size": None,
    "scale_factor": None,
    "mode": "nearest",
    "align_corners": None,
    "recompute_scale_factor": None,
}


def function(node: fx.Node) -> list[Op] | None:
    """A function of one number, with constant parameters."""
    module = module_of(node)
    if type(module) is nn.PReLU:
        if module.num_parameters != 1:
            need_rank(source(node), 4)
            return [("prelu", {})]
        return _activation("leaky_relu", float(module.weight.detach()))
    for name, kind, functions, defaults in _FUNCTIONS:
        if not calls(node, kind, *functions):
            continue
        found = constants(node, {**defaults, "inplace": False})
        if name == "gelu":
            return _activation("gelu" if found["approximate"] == "none" else "gelu_tanh")
        return _activation(name, *(float(found[parameter]) for parameter in defaults))
    return None


def arithmetic(node: fx.Node) -> list[Op] | None:
    """Products, differences, and sums with numbers; `match.is_add` comes first."""
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _NEG:
        return _activation("affine", -1.0, 0.0)
    if node.target not in (*_ADD, *_SUB, *_MUL, *_DIV):
        return None
    if len(node.args) != 2 or node.kwargs:
        raise Unsupported("two operands are supported, and no other argument")
    a, b = node.args
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        return _of_tensors(node, a, b)
    if isinstance(b, (int, float)) and isinstance(a, fx.Node):
        return _with_number(node, a, float(b))
    if isinstance(a, (int, float)) and isinstance(b, fx.Node):
        return _from_number(node, float(a), b)
    raise Unsupported("its operands are not tensors from the input and numbers")


def _activation(fn: str, *params: float) -> list[Op]:
    return [("activation", {"fn": fn, "params": params})]


def _affine(x: fx.Node, factor: float, offset: float) -> list[Op]:
    params = {"fn": "affine", "params": (factor, offset), "operands": (x,)}
    return [("activation", params)]


def _with_number(node: fx.Node, x: fx.Node, number: float) -> list[Op]:
    if node.target in _ADD or node.target in _SUB:
        return _affine(x, 1.0, number if node.target in _ADD else -number)
    if node.target in _DIV and number == 0:
        raise Unsupported("it divides by zero")
    return _affine(x, number if node.target in _MUL else 1 / number, 0.0)


def _from_number(node: fx.Node, number: float, x: fx.Node) -> list[Op]:
    if node.target in _DIV:
        raise Unsupported("it divides by a tensor")
    if node.target in _MUL:
        return _affine(x, number, 0.0)
    return _affine(x, 1.0 if node.target in _ADD else -1.0, number)


def gate(node: fx.Node) -> list[Op] | None:
    """[N, C] as [N, C, 1, 1], and that spread over an image, as squeeze-excite writes them."""
    views = ("view", "reshape", torch.reshape)
    if node.target in views or node.target is operator.getitem:
        x = node.args[0]
        before = shape_of(x) if isinstance(x, fx.Node) else None
        if not before or len(before) != 2 or shape_of(node) != (*before, 1, 1):
            return None
        if node.target in views and not _stays_free((*node.args[1:2], -1, -1)):
            raise Unsupported("its batch size is a constant; write x.size(0)")
        return [("unflatten", {})]
    if node.op == "call_method" and node.target in ("expand_as", "expand"):
        before, users = shape_of(source(node)), node.users
        if before and before[2:] == (1, 1) and all(user.target in _MUL for user in users):
            return []
    return None


def _spread(node: fx.Node) -> fx.Node:
    """What an expand spreads; a product does that itself."""
    return source(node) if node.target in ("expand_as", "expand") else node


def _of_tensors(node: fx.Node, a: fx.Node, b: fx.Node) -> list[Op]:
    a, b = _spread(a), _spread(b)
    left, right = shape_of(a), shape_of(b)
    if node.target in _DIV:
        raise Unsupported("it divides by a tensor")
    if left == right and left:
        return [("mul" if node.target in _MUL else "sub", {"operands": (a, b)})]
    if node.target in _MUL and left and right and len(left) == len(right) == 4:
        if left[:2] == right[:2] and (1, 1) in (left[2:], right[2:]):
            gate_last = (a, b) if right[2:] == (1, 1) else (b, a)
            return [("mul", {"operands": gate_last})]
    raise Unsupported(f"it combines shapes {left} and {right}")


def concat(node: fx.Node) -> list[Op] | None:
    """torch.cat along channels."""
    if not calls(node, None, torch.cat, torch.concat, torch.concatenate):
        return None
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, Sequence) or not all(isinstance(p, fx.Node) for p in parts):
        raise Unsupported("its parts are not a list of tensors")
    ranks = {len(shape_of(part) or ()) for part in parts if isinstance(part, fx.Node)}
    if ranks not in ({2}, {4}) or not isinstance(dim, int) or dim % ranks.pop() != 1:
        raise Unsupported("a concatenation is supported along channels")
    if len(parts) == 1:
        return [("same", {"operands": tuple(parts)})]
    return [("concat", {"operands": tuple(parts)})]


def channels(node: fx.Node) -> list[Op] | None:
    """Some of the channels: an item of chunk or split, or x[:, a:b]."""
    if _is_split(node):
        if any(user.target is not operator.getitem for user in node.users):
            raise Unsupported("its parts are supported one by one")
        if node.meta["sizes"] is None or len(shape_of(source(node)) or ()) != 4:
            raise Unsupported("parts are supported along the channels of an image")
        return []
    if node.target is not operator.getitem:
        return None
    x, index = node.args
    if isinstance(x, fx.Node) and _is_split(x) and isinstance(index, int):
        sizes = x.meta["sizes"]
        if sizes is None:
            raise Consequence
        index %= len(sizes)
        begin = sum(sizes[:index])
        at = {"begin": begin, "end": begin + sizes[index], "operands": (source(x),)}
        return [("slice", at)]
    if isinstance(x, fx.Node) and isinstance(index, tuple) and len(shape_of(x) or ()) == 4:
        return _indexed(x, index)
    raise Unsupported("it is no part of chunk or split, nor x[:, a:b]")


def _indexed(x: fx.Node, index: tuple[Any, ...]) -> list[Op]:
    full = slice(None)
    rest = [i for k, i in enumerate(index) if k != 1 and i is not Ellipsis]
    cut = index[1] if len(index) > 1 else full
    if any(i != full for i in rest) or not isinstance(cut, slice) or cut.step not in (None, 1):
        raise Unsupported("only channels may be cut, as x[:, a:b]")
    if not all(v is None or isinstance(v, int) for v in (cut.start, cut.stop)):
        raise Unsupported("its bounds are not constants")
    begin, end, _ = cut.indices((shape_of(x) or (0, 0))[1])
    return [("slice", {"begin": begin, "end": end, "operands": (x,)})]


def _is_split(node: fx.Node) -> bool:
    known = (torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split")
    return node.op in ("call_function", "call_method") and node.target in known


def shuffle(node: fx.Node) -> list[Op] | None:
    """Pixel shuffle and unshuffle, channel shuffle."""
    for op, module, functional, name in (
        ("pixel_shuffle", nn.PixelShuffle, F.pixel_shuffle, "upscale_factor"),
        ("pixel_unshuffle", nn.PixelUnshuffle, F.pixel_unshuffle, "downscale_factor"),
        ("channel_shuffle", nn.ChannelShuffle, F.channel_shuffle, "groups"),
    ):
        if calls(node, module, functional):
            need_rank(source(node), 4)
            value = constants(node, {name: None})[name]
            return [(op, {"groups": value} if name == "groups" else {"factor": pair(value)})]
    if (inner := _by_hand(node)) is not None:
        first, last = inner
        if node is not last:
            return []
        groups = (shape_of(first) or (0, 0))[1]
        return [("channel_shuffle", {"groups": groups, "operands": (source(first),)})]
    return None


def _by_hand(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The first and last node of view, transpose(1, 2), contiguous, view around `node`."""
    last = node
    for _ in range(4):
        chain = _ends_shuffle(last)
        if chain is not None and node in chain:
            return chain[0], last
        if len(last.users) != 1:
            return None
        (last,) = last.users
    return None


def _ends_shuffle(last: fx.Node) -> list[fx.Node] | None:
    chain = [last]
    while len(chain) < 4 and isinstance(
        before := chain[0].args[0] if chain[0].args else 0, fx.Node
    ):
        if len(before.users) != 1:
            break
        chain.insert(0, before)
        if before.target not in ("contiguous", torch.transpose, "transpose"):
            break
    views = ("view", "reshape", torch.reshape)
    if len(chain) < 3 or chain[0].target not in views or last.target not in views:
        return None
    if chain[1].target not in ("transpose", torch.transpose) or chain[1].args[1:] != (1, 2):
        return None
    before, wide, after = (shape_of(n) for n in (source(chain[0]), chain[0], last))
    if before is None or len(before) != 4 or before != after or len(wide or ()) != 5:
        return None
    free = all(_stays_free(n.args[1:]) for n in (chain[0], last))
    return chain if free and wide is not None and wide[3:] == before[2:] else None


def _stays_free(sizes: tuple[Any, ...]) -> bool:
    """No constant batch, height or width."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    ends = (sizes[0], *sizes[-2:])
    return all(isinstance(v, fx.Node) or v == -1 for v in ends)


def resize(node: fx.Node) -> list[Op] | None:
    """interpolate and Upsample, nearest and bilinear."""
    if not calls(node, nn.Upsample, F.interpolate):
        return None
    x = source(node)
    need_rank(x, 4)
    options = constants(node, _RESIZE | {"antialias": False}, free=("size",))
    mode, size, zoom = options["mode"], options["size"], options["scale_factor"]
    if mode not in ("nearest", "bilinear") or options["antialias"]:
        raise Unsupported(f"nearest and bilinear resizing are supported, without antialias: {mode}")
    at: dict[str, Any] = {"mode": mode, "align": bool(options["align_corners"])}
    if size is not None and (like := _sized_like(size)) is not None:
        return [("resize", {**at, "operands": (x, like)})]
    if size is not None:
        return [("resize", {**at, "size": pair(size)})]
    zooms = tuple(zoom) if isinstance(zoom, Sequence) else (zoom, zoom)
    exact = all(isinstance(z, (int, float)) and float(np.float32(z)) == z for z in zooms)
    if len(zooms) != 2 or not exact or options["recompute_scale_factor"] or at["align"]:
        raise Unsupported("scale factors are float32 numbers, without align_corners; pass a size")
    return [("resize", {**at, "zoom": tuple(float(z) for z in zooms)})]


def _sized_like(size: Any) -> fx.Node | None:
    """The tensor whose height and width `size` says; None for constants."""
    if isinstance(size, Sequence) and any(isinstance(v, fx.Node) for v in size):
        found = [_length_of(v) for v in size]
        if len(found) == 2 and found[0][0] is found[1][0] and [f[1] for f in found] == [2, 3]:
            return found[0][0]
    elif isinstance(size, fx.Node):
        whole, index = size.args if size.target is operator.getitem else (None, None)
        if index in (slice(2, None), slice(-2, None)) and isinstance(whole, fx.Node):
            return _shape_owner(whole)
    else:
        return None
    raise Unsupported("its size is neither constant nor the image size of another tensor")


def _shape_owner(node: fx.Node) -> fx.Node | None:
    by_attribute = node.target is getattr and node.args[1] == "shape"
    by_method = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    owner = node.args[0] if by_attribute or by_method else None
    return owner if isinstance(owner, fx.Node) else None


def _length_of(node: Any) -> tuple[fx.Node | None, int]:
    """The tensor and axis that a number is the length of; (None, -1) otherwise."""
    arguments: tuple[Any, ...] = node.args if isinstance(node, fx.Node) else ()
    if len(arguments) == 2 and isinstance(arguments[1], int):
        whole, axis = arguments
        if node.op == "call_method" and node.target == "size":
            return (whole if isinstance(whole, fx.Node) else None), axis % 4
        if node.target is operator.getitem and isinstance(whole, fx.Node):
            return _shape_owner(whole), axis % 4
    return None, -1


def softmax(node: fx.Node) -> list[Op] | None:
    """Over channels."""
    if not calls(node, nn.Softmax, F.softmax, torch.softmax, "softmax"):
        return None
    options = constants(node, {"dim": None, "_stacklevel": 3, "dtype": None})
    rank = len(shape_of(source(node)) or ())
    if rank not in (2, 4) or options["dim"] is None or options["dim"] % rank != 1:
        raise Unsupported("a softmax is supported over channels")
    return [("softmax", {})]


def layer_norm(node: fx.Node) -> list[Op] | None:
    """LayerNorm over the K of [N, K]."""
    if type(module_of(node)) is not nn.LayerNorm:
        return None
    need_rank(source(node), 2)
    return [("layer_norm", {})]


def transposed(node: fx.Node) -> list[Op] | None:
    """ConvTranspose2d; its module says the rest."""
    if type(module_of(node)) is not nn.ConvTranspose2d:
        return None
    need_rank(source(node), 4)
    if len(node.args) > 1 or node.kwargs:
        raise Unsupported("output_size is not supported; set output_padding")
    return [("conv_transpose2d", {})]


MATCHERS = (
    function,
    arithmetic,
    concat,
    gate,
    channels,
    shuffle,
    resize,
    softmax,
    layer_norm,
    transposed,
)
