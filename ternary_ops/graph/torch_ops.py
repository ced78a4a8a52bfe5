# SPDX-License-Identifier: Apache-2.0
"""Torch operators as networks spell them: module, functions, tensor methods, arguments.

The one place that knows them: whatever recognizes an operator in a traced network (fusing, folding,
functional layers, the compiler) asks `graph.nodes`, which looks it up here.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ternary_ops.nn as tnn

Kinds = tuple[type[nn.Module], ...]
REQUIRED = object()


@dataclass(frozen=True, eq=False)
class TorchOp:
    """One operator in all its spellings.

    name: for people. modules: classes of torch.nn and ternary_ops.nn. calls: functions, and methods
    by name. arguments: those after the tensor, in PyTorch's order, with its defaults; a module has
    them as attributes. subclasses: classes derived from the modules compute the same. named: calls
    recognized by the function's name alone, since its package may be absent.
    """

    name: str
    modules: Kinds = ()
    calls: tuple[Any, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    subclasses: bool = False
    named: tuple[str, ...] = ()


_OPERATORS: list[TorchOp] = []


def _op(
    name: str,
    modules: type[nn.Module] | Kinds | None,
    *calls: Any,
    subclasses: bool = False,
    named: tuple[str, ...] = (),
    **arguments: Any,
) -> TorchOp:
    if not isinstance(modules, tuple):
        modules = () if modules is None else (modules,)
    made = TorchOp(name, modules, calls, arguments, subclasses, named)
    _OPERATORS.append(made)
    return made


# Layers: what has weights.
_CONV: dict[str, Any] = {"weight": REQUIRED, "bias": None, "stride": 1, "padding": 0}
CONV2D = _op(
    "Conv2d",
    (nn.Conv2d, tnn.TernaryConv2d, tnn.PackedConv2d),
    F.conv2d,
    torch.conv2d,
    **_CONV,
    dilation=1,
    groups=1,
)
CONV_TRANSPOSE2D = _op(
    "ConvTranspose2d",
    nn.ConvTranspose2d,
    F.conv_transpose2d,
    torch.conv_transpose2d,
    **_CONV,
    output_padding=0,
    groups=1,
    dilation=1,
)
LINEAR = _op(
    "Linear",
    (nn.Linear, tnn.TernaryLinear, tnn.PackedLinear),
    F.linear,
    weight=REQUIRED,
    bias=None,
)
MATMUL = _op(
    "matmul", None, operator.matmul, torch.matmul, torch.mm, "matmul", "mm", other=REQUIRED
)
ADDMM = _op("addmm", None, torch.addmm, "addmm", mat1=REQUIRED, mat2=REQUIRED, beta=1, alpha=1)
BATCH_NORM = _op("BatchNorm2d", (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm))
LAYER_NORM = _op(
    "LayerNorm",
    nn.LayerNorm,
    F.layer_norm,
    torch.layer_norm,
    normalized_shape=REQUIRED,
    weight=None,
    bias=None,
    eps=1e-5,
    cudnn_enable=True,
)
GROUP_NORM = _op(
    "GroupNorm",
    nn.GroupNorm,
    F.group_norm,
    torch.group_norm,
    num_groups=REQUIRED,
    weight=None,
    bias=None,
    eps=1e-5,
    cudnn_enabled=True,
)
PRELU = _op("PReLU", nn.PReLU)

# Activations that clamp.
RELU = _op(
    "ReLU", nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", subclasses=True
)
RELU6 = _op("ReLU6", None, F.relu6)
HARDTANH = _op(
    "Hardtanh", nn.Hardtanh, F.hardtanh, F.hardtanh_, subclasses=True, min_val=-1.0, max_val=1.0
)
CLAMP = _op(
    "clamp",
    None,
    torch.clamp,
    torch.clamp_,
    torch.clip,
    "clamp",
    "clamp_",
    "clip",
    min=None,
    max=None,
)
FAKE_QUANTIZE = _op("fake_quantize_per_tensor_affine", None, torch.fake_quantize_per_tensor_affine)

# Other functions of one number.
LEAKY_RELU = _op(
    "LeakyReLU", nn.LeakyReLU, F.leaky_relu, F.leaky_relu_, negative_slope=0.01, inplace=False
)
HARDSWISH = _op("hardswish", nn.Hardswish, F.hardswish, inplace=False)
HARDSIGMOID = _op("hardsigmoid", nn.Hardsigmoid, F.hardsigmoid, inplace=False)
SILU = _op("SiLU", nn.SiLU, F.silu, inplace=False)
SIGMOID = _op(
    "sigmoid", nn.Sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_", F.sigmoid
)
TANH = _op("tanh", nn.Tanh, torch.tanh, torch.tanh_, "tanh", "tanh_", F.tanh)
GELU = _op("GELU", nn.GELU, F.gelu, approximate="none")
ELU = _op("ELU", nn.ELU, F.elu, F.elu_, alpha=1.0, inplace=False)
SOFTPLUS = _op("softplus", nn.Softplus, F.softplus, beta=1.0, threshold=20.0)
MISH = _op("Mish", nn.Mish, F.mish, inplace=False)
EXP = _op("exp", None, torch.exp, "exp")

# Arithmetic.
ADD = _op("sums", None, operator.add, operator.iadd, torch.add, "add", "add_")
SUB = _op("differences", None, operator.sub, operator.isub, torch.sub, "sub", "sub_")
MUL = _op("products", None, operator.mul, operator.imul, torch.mul, "mul", "mul_")
DIV = _op("quotients", None, operator.truediv, operator.itruediv, torch.div, "div", "div_")
NEG = _op("negation", None, operator.neg, torch.neg, "neg")

# Pools.
MAX_POOL2D = _op(
    "MaxPool2d",
    nn.MaxPool2d,
    F.max_pool2d,
    torch.max_pool2d,
    kernel_size=None,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
)
AVG_POOL2D = _op(
    "AvgPool2d",
    nn.AvgPool2d,
    F.avg_pool2d,
    kernel_size=None,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
)
ADAPTIVE_AVG_POOL2D = _op(
    "AdaptiveAvgPool2d", nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, output_size=None
)
MEAN = _op("mean", None, torch.mean, "mean", dim=None, keepdim=False, dtype=None)

PAD = _op(
    "pad",
    (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    F.pad,
    pad=REQUIRED,
    mode="constant",
    value=None,
)

# What moves values.
CONCAT = _op("cat", None, torch.cat, torch.concat, torch.concatenate)
SPLIT = _op(
    "chunk and split",
    None,
    torch.chunk,
    torch.split,
    torch.tensor_split,
    "chunk",
    "split",
    "tensor_split",
)
GETITEM = _op("indexing", None, operator.getitem)
FLATTEN = _op("flatten", nn.Flatten, torch.flatten, "flatten")
RESHAPE = _op("reshape", None, torch.reshape, "reshape", "view")
TRANSPOSE = _op("transpose", None, torch.transpose, "transpose")
EXPAND = _op("expand", None, "expand", "expand_as")
PIXEL_SHUFFLE = _op("PixelShuffle", nn.PixelShuffle, F.pixel_shuffle, upscale_factor=None)
PIXEL_UNSHUFFLE = _op("PixelUnshuffle", nn.PixelUnshuffle, F.pixel_unshuffle, downscale_factor=None)
CHANNEL_SHUFFLE = _op("ChannelShuffle", nn.ChannelShuffle, F.channel_shuffle, groups=None)
INTERPOLATE = _op(
    "interpolate",
    nn.Upsample,
    F.interpolate,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
)
SOFTMAX = _op(
    "softmax",
    nn.Softmax,
    F.softmax,
    torch.softmax,
    "softmax",
    dim=None,
    _stacklevel=3,
    dtype=None,
)

# What changes nothing in eval mode.
CONTIGUOUS = _op("contiguous", None, "contiguous")
IDENTITY = _op("Identity", nn.Identity, subclasses=True)
DROPOUT = _op(
    "Dropout",
    (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    subclasses=True,
    named=("stochastic_depth",),  # torchvision's, which a trace does not look into
)

BY_CALL = {call: op for op in _OPERATORS for call in op.calls}
BY_MODULE = {module: op for op in _OPERATORS for module in op.modules}
BY_NAME = {name: op for op in _OPERATORS for name in op.named}
