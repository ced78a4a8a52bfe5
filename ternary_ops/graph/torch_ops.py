# SPDX-License-Identifier: Apache-2.0
"""Torch operators as networks spell them: module, functions, tensor methods, arguments.

The one place that knows them: whatever recognizes an operator in a traced network (fusing, folding,
functional layers, the compiler) asks `graph.nodes`, which looks it up here.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ternary_ops.nn as tnn
from ternary_ops.graph.torch_op import REQUIRED, Kinds, TorchOp
from ternary_ops.nn.geometry import PaddedConv2d

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
    (nn.Conv2d, PaddedConv2d, tnn.TernaryConv2d, tnn.PackedConv2d),
    F.conv2d,
    torch.conv2d,
    **_CONV,
    dilation=1,
    groups=1,
)
CONV1D = _op("Conv1d", nn.Conv1d, F.conv1d, torch.conv1d, **_CONV, dilation=1, groups=1)
CONV3D = _op("Conv3d", nn.Conv3d)
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
    "matmul",
    None,
    operator.matmul,
    torch.matmul,
    torch.mm,
    torch.bmm,
    "matmul",
    "mm",
    "bmm",
    other=REQUIRED,
)
EINSUM = _op("einsum", None, torch.einsum)
ATTENTION = _op(
    "scaled_dot_product_attention",
    None,
    F.scaled_dot_product_attention,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
)
HEADS = _op("MultiheadAttention", nn.MultiheadAttention)
ADDMM = _op("addmm", None, torch.addmm, "addmm", mat1=REQUIRED, mat2=REQUIRED, beta=1, alpha=1)
BATCH_NORM = _op(
    "BatchNorm2d",
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm),
    F.batch_norm,
    running_mean=REQUIRED,
    running_var=REQUIRED,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
)
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
RMS_NORM = _op(
    "RMSNorm",
    nn.RMSNorm,
    F.rms_norm,
    torch.rms_norm,
    normalized_shape=REQUIRED,
    weight=None,
    eps=None,
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
CELU = _op("CELU", nn.CELU, F.celu, F.celu_, torch.celu, alpha=1.0, inplace=False)
SELU = _op("SELU", nn.SELU, F.selu, F.selu_, torch.selu, inplace=False)
RRELU = _op("RReLU", nn.RReLU, F.rrelu, F.rrelu_, lower=1 / 8, upper=1 / 3)
LOGSIGMOID = _op("logsigmoid", nn.LogSigmoid, F.logsigmoid)
SOFTSIGN = _op("Softsign", nn.Softsign, F.softsign)
TANHSHRINK = _op("Tanhshrink", nn.Tanhshrink, F.tanhshrink)
SOFTSHRINK = _op("Softshrink", nn.Softshrink, F.softshrink, lambd=0.5)
HARDSHRINK = _op("Hardshrink", nn.Hardshrink, F.hardshrink, torch.hardshrink, lambd=0.5)
THRESHOLD = _op(
    "Threshold",
    nn.Threshold,
    F.threshold,
    torch.threshold,
    torch.threshold_,
    threshold=REQUIRED,
    value=REQUIRED,
    inplace=False,
)
EXP = _op("exp", None, torch.exp, "exp")
LOG = _op("log", None, torch.log, "log")
ABS = _op("abs", None, abs, operator.abs, torch.abs, "abs")
SQUARE = _op("square", None, torch.square, "square")
SQRT = _op("sqrt", None, torch.sqrt, "sqrt")
RSQRT = _op("rsqrt", None, torch.rsqrt, "rsqrt")
RECIPROCAL = _op("reciprocal", None, torch.reciprocal, "reciprocal")
POW = _op("powers", None, operator.pow, torch.pow, "pow", exponent=REQUIRED)
ERF = _op("erf", None, torch.erf, torch.special.erf, "erf")
SIN = _op("sin", None, torch.sin, "sin")
COS = _op("cos", None, torch.cos, "cos")

# Arithmetic.
ADD = _op("sums", None, operator.add, operator.iadd, torch.add, "add", "add_")
ADDCMUL = _op(
    "addcmul", None, torch.addcmul, "addcmul", tensor1=REQUIRED, tensor2=REQUIRED, value=1
)
SUB = _op("differences", None, operator.sub, operator.isub, torch.sub, "sub", "sub_")
MUL = _op("products", None, operator.mul, operator.imul, torch.mul, "mul", "mul_")
DIV = _op("quotients", None, operator.truediv, operator.itruediv, torch.div, "div", "div_")
NEG = _op("negation", None, operator.neg, torch.neg, "neg")

# Pools.
_MAX_POOL: dict[str, Any] = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1}
_MAX_POOL |= {"ceil_mode": False, "return_indices": False}
MAX_POOL1D = _op("MaxPool1d", nn.MaxPool1d, F.max_pool1d, torch.max_pool1d, **_MAX_POOL)
MAX_POOL2D = _op("MaxPool2d", nn.MaxPool2d, F.max_pool2d, torch.max_pool2d, **_MAX_POOL)
_AVG_POOL: dict[str, Any] = {"kernel_size": None, "stride": None, "padding": 0}
_AVG_POOL |= {"ceil_mode": False, "count_include_pad": True}
AVG_POOL1D = _op("AvgPool1d", nn.AvgPool1d, F.avg_pool1d, torch.avg_pool1d, **_AVG_POOL)
AVG_POOL2D = _op(
    "AvgPool2d",
    nn.AvgPool2d,
    F.avg_pool2d,
    **_AVG_POOL,
    divisor_override=None,
)
ADAPTIVE_AVG_POOL1D = _op(
    "AdaptiveAvgPool1d",
    nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool1d,
    torch.adaptive_avg_pool1d,
    output_size=None,
)
ADAPTIVE_AVG_POOL2D = _op(
    "AdaptiveAvgPool2d", nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, output_size=None
)
ADAPTIVE_MAX_POOL2D = _op(
    "AdaptiveMaxPool2d",
    nn.AdaptiveMaxPool2d,
    F.adaptive_max_pool2d,
    output_size=None,
    return_indices=False,
)

# Along axes.
_ALONG: dict[str, Any] = {"dim": None, "keepdim": False}
MEAN = _op("mean", None, torch.mean, "mean", **_ALONG, dtype=None)
SUM = _op("sum", None, torch.sum, "sum", **_ALONG, dtype=None)
AMAX = _op("amax", None, torch.amax, "amax", **_ALONG)
AMIN = _op("amin", None, torch.amin, "amin", **_ALONG)
MAX = _op("max along an axis", None, torch.max, "max", **_ALONG)
MIN = _op("min along an axis", None, torch.min, "min", **_ALONG)
MAXIMUM = _op("maximum", None, torch.maximum, "maximum", other=REQUIRED)
MINIMUM = _op("minimum", None, torch.minimum, "minimum", other=REQUIRED)
VAR = _op("var", None, torch.var, "var", dim=None, unbiased=None, keepdim=False, correction=None)
STD = _op("std", None, torch.std, "std", dim=None, unbiased=None, keepdim=False, correction=None)
NORM = _op("norm", None, torch.norm, "norm", p="fro", **_ALONG, out=None, dtype=None)
VECTOR_NORM = _op("vector_norm", None, torch.linalg.vector_norm, ord=2.0, **_ALONG, dtype=None)
NORMALIZE = _op("normalize", None, F.normalize, p=2.0, dim=1, eps=1e-12, out=None)
LOGSUMEXP = _op("logsumexp", None, torch.logsumexp, "logsumexp", **_ALONG)

PAD = _op(
    "pad",
    (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    F.pad,
    pad=REQUIRED,
    mode="constant",
    value=None,
)

# What moves values.
CONCAT = _op("cat", None, torch.cat, torch.concat, torch.concatenate, dim=0)
STACK = _op("stack", None, torch.stack, dim=0)
CHUNK = _op("chunk", None, torch.chunk, "chunk", chunks=REQUIRED, dim=0)
SPLIT = _op("split", None, torch.split, "split", split_size=REQUIRED, dim=0)
TENSOR_SPLIT = _op(
    "tensor_split",
    None,
    torch.tensor_split,
    "tensor_split",
    indices_or_sections=REQUIRED,
    dim=0,
)
UNBIND = _op("unbind", None, torch.unbind, "unbind", dim=0)
NARROW = _op("narrow", None, torch.narrow, "narrow", dim=REQUIRED, start=REQUIRED, length=REQUIRED)
SELECT = _op("select", None, torch.select, "select", dim=REQUIRED, index=REQUIRED)
INDEX_SELECT = _op(
    "index_select", None, torch.index_select, "index_select", dim=REQUIRED, index=REQUIRED
)
GETITEM = _op("indexing", None, operator.getitem)
ROLL = _op("roll", None, torch.roll, "roll", shifts=REQUIRED, dims=None)
FLATTEN = _op("flatten", nn.Flatten, torch.flatten, "flatten")
UNFLATTEN = _op("unflatten", nn.Unflatten, torch.unflatten, "unflatten")
RESHAPE = _op("reshape", None, torch.reshape, "reshape", "view", "reshape_as", "view_as")
SQUEEZE = _op("squeeze", None, torch.squeeze, "squeeze", dim=None)
UNSQUEEZE = _op("unsqueeze", None, torch.unsqueeze, "unsqueeze", dim=REQUIRED)
TRANSPOSE = _op(
    "transpose",
    None,
    torch.transpose,
    torch.swapaxes,
    torch.swapdims,
    "transpose",
    "swapaxes",
    "swapdims",
    dim0=REQUIRED,
    dim1=REQUIRED,
)
T = _op("t", None, torch.t, "t")
PERMUTE = _op("permute", None, torch.permute, "permute", dims=REQUIRED)
MOVEDIM = _op(
    "movedim",
    None,
    torch.movedim,
    torch.moveaxis,
    "movedim",
    "moveaxis",
    source=REQUIRED,
    destination=REQUIRED,
)
EXPAND = _op("expand", None, torch.broadcast_to, "expand", "expand_as", "broadcast_to")
_WINDOWS: dict[str, Any] = {"kernel_size": REQUIRED, "dilation": 1, "padding": 0, "stride": 1}
UNFOLD_IMAGE = _op("Unfold", nn.Unfold, F.unfold, **_WINDOWS)
FOLD = _op("Fold", nn.Fold, F.fold, output_size=REQUIRED, **_WINDOWS)
UNFOLD = _op("unfold", None, "unfold", dimension=REQUIRED, size=REQUIRED, step=REQUIRED)
REPEAT_INTERLEAVE = _op(
    "repeat_interleave",
    None,
    torch.repeat_interleave,
    "repeat_interleave",
    repeats=REQUIRED,
    dim=None,
)
REPEAT = _op("repeat", None, torch.tile, "repeat", "tile")
ATTRIBUTE = _op("T and mT", None, getattr)
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
LOG_SOFTMAX = _op(
    "log_softmax",
    nn.LogSoftmax,
    F.log_softmax,
    torch.log_softmax,
    "log_softmax",
    dim=None,
    _stacklevel=3,
    dtype=None,
)
SOFTMAX2D = _op("Softmax2d", nn.Softmax2d)

# What changes nothing in eval mode.
CONTIGUOUS = _op(
    "contiguous", None, torch.clone, torch.detach, "contiguous", "clone", "detach", "float", "cpu"
)
TO = _op("to", None, "to", "type_as", "type")
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
