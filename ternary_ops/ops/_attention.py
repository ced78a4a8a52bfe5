# SPDX-License-Identifier: Apache-2.0
"""Attention blocks of super-resolution networks, whole: x times the sigmoid of a branch of it.

x, y      [N, C, H, W]  float32, float16 or bfloat16
weights   [O, I, R, S] of each convolution, odd R and S; biases [O]; both of x's dtype or float32

On a CPU they run as small float32 programs, in bands of rows, kept by the content of the weights;
on a GPU in x's dtype with float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops.ops import _check
from ternary_ops.ops._gpu import gpu_module
from ternary_ops.ops._library import define, differentiate

_Tensors = Sequence[Tensor]


def _check_chain(
    op: str, x: Tensor, weights: _Tensors, biases: _Tensors, inputs: Sequence[int]
) -> None:
    """Each convolution's input channels, and that they keep the size; `inputs` as x's channels."""
    if x.dtype not in _check.FLOATS or x.dim() != 4:
        got = f"{x.dtype} {list(x.shape)}"
        _check.refuse(op, "x float [N, C, H, W]", got, "Convert or reshape it.")
    if len(weights) != len(inputs) or len(biases) != len(inputs):
        got = f"{len(weights)} and {len(biases)}"
        _check.refuse(op, f"{len(inputs)} weights and biases", got, "Pass one of each a layer.")
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        odd = w.dim() == 4 and all(k % 2 == 1 for k in w.shape[2:])
        if not odd or w.shape[1] != inputs[i] or b.shape != w.shape[:1]:
            found = f"{list(w.shape)}, bias {list(b.shape)}"
            wanted = f"weight {i} [O, {inputs[i]}, R, S] of odd sides and bias [O]"
            _check.refuse(op, wanted, found, "Check the order of the layers.")
        if w.dtype not in _check.FLOATS or b.dtype not in _check.FLOATS:
            _check.refuse(op, "float weights", f"{w.dtype}, {b.dtype}", "Convert them.")
    if weights[-1].shape[0] != x.shape[1]:
        wanted = f"a last layer of {x.shape[1]} channels, as x"
        _check.refuse(op, wanted, weights[-1].shape[0], "Check the layers.")


def check_hf(x: Tensor, weights: _Tensors, biases: _Tensors, slopes: Sequence[float]) -> None:
    """Refuse what hf_attention does not take."""
    op = "hf_attention"
    if not weights or len(slopes) != len(weights) - 1:
        got = f"{len(slopes)} for {len(weights)}"
        _check.refuse(op, "a slope after each layer but the last", got, "1.0 means none.")
    _check_chain(op, x, weights, biases, [x.shape[1], *(w.shape[0] for w in weights[:-1])])


def check_esa(x: Tensor, weights: _Tensors, biases: _Tensors) -> None:
    """Refuse what esa does not take."""
    op = "esa"
    if len(weights) < 5:
        _check.refuse(op, "at least 5 weights", len(weights), "See ops.esa for their order.")
    narrow = weights[0].shape[0]
    inputs = [x.shape[1], narrow, narrow, *(w.shape[0] for w in weights[2:-2]), narrow]
    _check_chain(op, x, weights, biases, inputs)
    if weights[-2].shape[0] != narrow or weights[1].shape[0] != narrow:
        got = f"{weights[-2].shape[0]} and {weights[1].shape[0]}"
        _check.refuse(op, f"two maps of {narrow} channels to add", got, "Check the layers.")
    if min(x.shape[2:]) < 15:
        do = "Extend the image: the pooled map would be empty."
        _check.refuse(op, "images of at least 15 x 15", list(x.shape), do)


def _same(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    w, b = w.to(x.dtype), b.to(x.dtype)
    return F.conv2d(x, w, b, padding=(w.shape[2] // 2, w.shape[3] // 2))


def composed_hf(x: Tensor, weights: _Tensors, biases: _Tensors, slopes: Sequence[float]) -> Tensor:
    """hf_attention from PyTorch's own operators, which know their gradients."""
    check_hf(x, weights, biases, slopes)
    y = x
    for w, b, slope in zip(weights, biases, [*slopes, 1.0], strict=True):
        y = _same(y, w, b)
        y = F.leaky_relu(y, slope) if slope != 1.0 else y
    return x * torch.sigmoid(y)


def composed_esa(x: Tensor, weights: _Tensors, biases: _Tensors) -> Tensor:
    """esa from PyTorch's own operators, which know their gradients."""
    check_esa(x, weights, biases)
    c1 = _same(x, weights[0], biases[0])
    v = F.conv2d(c1, weights[2].to(x.dtype), biases[2].to(x.dtype), stride=2)
    v = F.max_pool2d(v, 7, 3)
    for w, b in zip(weights[3:-2], biases[3:-2], strict=True):
        v = F.relu(_same(v, w, b))
    v = _same(v, weights[-2], biases[-2])
    v = F.interpolate(v, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x * torch.sigmoid(_same(v + _same(c1, weights[1], biases[1]), weights[-1], biases[-1]))


def _cpu_hf(x: Tensor, weights: _Tensors, biases: _Tensors, slopes: Sequence[float]) -> Tensor:
    from ternary_ops.program import gate_programs

    check_hf(x, weights, biases, slopes)
    return _run(gate_programs.hf_attention, x, weights, biases, slopes)


def _cpu_esa(x: Tensor, weights: _Tensors, biases: _Tensors) -> Tensor:
    from ternary_ops.program import gate_programs

    check_esa(x, weights, biases)
    return _run(gate_programs.esa, x, weights, biases)


def _run(
    make: Callable[..., Any], x: Tensor, weights: _Tensors, biases: _Tensors, *rest: Any
) -> Tensor:
    if not x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    arrays = ([t.detach().float().numpy() for t in tensors] for tensors in (weights, biases))
    program = make(*arrays, *rest)
    return torch.from_numpy(program(x.detach().float().numpy())).to(x.dtype)


def _gpu_hf(x: Tensor, weights: _Tensors, biases: _Tensors, slopes: Sequence[float]) -> Tensor:
    check_hf(x, weights, biases, slopes)
    inner = {w.shape[0] for w in weights[:-1]}
    if len(inner) != 1 or any(w.shape[2:] != (3, 3) for w in weights):
        got = [list(w.shape) for w in weights]
        wanted = "on a GPU two 3 x 3 layers or more, equally wide inside"
        _check.refuse("hf_attention", wanted, got, "Leave the block unfused.")
    return _on_gpu("hf_attention", x, weights, biases, list(slopes))


def _gpu_esa(x: Tensor, weights: _Tensors, biases: _Tensors) -> Tensor:
    check_esa(x, weights, biases)
    shapes = [w.shape[2:] for w in (weights[0], weights[1], weights[2], weights[-1])]
    if shapes != [(1, 1), (1, 1), (3, 3), (1, 1)]:
        got = [list(shape) for shape in shapes]
        _check.refuse("esa", "on a GPU kernels of 1, 1, 3 and 1", got, "Leave the block unfused.")
    return _on_gpu("esa", x, weights, biases)


def _on_gpu(name: str, x: Tensor, weights: _Tensors, biases: _Tensors, *rest: Any) -> Tensor:
    run = getattr(gpu_module("attention"), name)
    if not x.numel():
        return x.new_empty(x.shape)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        y: Tensor = run(x.contiguous(), list(weights), list(biases), *rest)
    return y


def _fake_hf(x: Tensor, weights: _Tensors, biases: _Tensors, slopes: Sequence[float]) -> Tensor:
    check_hf(x, weights, biases, slopes)
    return x.new_empty(x.shape)


def _fake_esa(x: Tensor, weights: _Tensors, biases: _Tensors) -> Tensor:
    check_esa(x, weights, biases)
    return x.new_empty(x.shape)


def _wanted(x: Tensor, weights: _Tensors, biases: _Tensors, *rest: Any) -> bool:
    return any(t.requires_grad for t in (x, *weights, *biases))


_HF = define(
    "hf_attention(Tensor x, Tensor[] weights, Tensor[] biases, float[] slopes) -> Tensor",
    *(_cpu_hf, _fake_hf, _gpu_hf),
)
_ESA = define(
    "esa(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor", _cpu_esa, _fake_esa, _gpu_esa
)
differentiate(_HF, _cpu_hf, _wanted, composed_hf)
differentiate(_ESA, _cpu_esa, _wanted, composed_esa)


def hf_attention(x: Tensor, weights: _Tensors, biases: _Tensors, slopes: Sequence[float]) -> Tensor:
    """High-frequency attention (FMEN, arXiv 2204.08397, section 3.3): x * sigmoid(branch(x)).

    branch: convolutions that keep the size, one after the other, each but the last followed by a
    leaky ReLU of the slope that stands there; 1.0 means none. Differentiable. Raises
    UnsupportedShape, UnsupportedDevice.
    """
    y: Tensor = _HF(x, weights, biases, slopes)
    return y


def esa(x: Tensor, weights: _Tensors, biases: _Tensors) -> Tensor:
    """Enhanced spatial attention (RFDN, Liu et al. 2020; EFDN, RLFN): x times a small map's mask.

    weights: conv1 [f, C, 1, 1], conv_f [f, f, 1, 1], conv2 [f, f, 3, 3] (stride 2, no padding, then
    a max pool of 7 and stride 3), one convolution or more on the pooled map with ReLU between them,
    conv4 [C, f, 1, 1]. y = x * sigmoid(conv4(stretched(pooled) + conv_f(conv1(x)))). At least 15 x
    15 pixels. Differentiable. Raises UnsupportedShape, UnsupportedDevice.
    """
    y: Tensor = _ESA(x, weights, biases)
    return y
