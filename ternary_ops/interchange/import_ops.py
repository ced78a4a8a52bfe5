# SPDX-License-Identifier: Apache-2.0
"""Table of the ONNX operators that are read, with their admission rules."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F

from ternary_ops.interchange import import_constants, quantizers
from ternary_ops.interchange import read_axes as axes
from ternary_ops.interchange import read_layers as layers
from ternary_ops.interchange import read_values as values
from ternary_ops.interchange.rules import ANY, Rule

_WINDOW: dict[str, Any] = dict.fromkeys(
    ("auto_pad", "kernel_shape", "pads", "strides", "dilations"), ANY
)
# Before opset 7: a second operand that broadcasts, aligned at the end unless `axis` says otherwise.
_LEGACY = {"broadcast": (0, 1)}
_QUANTIZED = {"axis": ANY, "block_size": (0,), "output_dtype": ANY, "saturate": (0, 1)}
_REDUCED = {"axes": ANY, "keepdims": (0, 1), "noop_with_empty_axes": (0, 1)}
_RESIZED = {
    "antialias": (0,),
    "coordinate_transformation_mode": ANY,
    "cubic_coeff_a": ANY,
    "exclude_outside": (0,),
    "extrapolation_value": ANY,
    "keep_aspect_ratio_policy": ("stretch",),
    "mode": ("nearest", "linear", "cubic"),
    "nearest_mode": ANY,
}

RULES: dict[str, Rule] = {
    "Add": Rule(values.binary(operator.add), (6, 14), _LEGACY),
    "AveragePool": Rule(
        layers.average_pool,
        (1, 22),
        {**_WINDOW, "ceil_mode": (0, 1), "count_include_pad": (0, 1)},
        ranks=(4,),
    ),
    "BatchNormalization": Rule(
        layers.batchnorm,
        (6, 15),
        {"epsilon": ANY, "momentum": ANY, "is_test": ANY, "spatial": (1,), "training_mode": (0,)},
        ranks=(2, 3, 4),
    ),
    "Cast": Rule(
        import_constants.cast, (6, 28), {"to": ANY, "saturate": (0, 1), "round_mode": ("up",)}
    ),
    "Clip": Rule(values.clip, (6, 13), {"min": ANY, "max": ANY}),
    "Concat": Rule(values.concat, (4, 13), {"axis": ANY}, codes="moved"),
    "Constant": Rule(
        import_constants.constant,
        (1, 25),
        dict.fromkeys(("value", "value_float", "value_floats", "value_int", "value_ints"), ANY),
    ),
    "Conv": Rule(layers.conv, (1, 22), {**_WINDOW, "group": ANY}, ranks=(4,)),
    "DepthToSpace": Rule(
        values.depth_to_space, (1, 28), {"blocksize": ANY, "mode": ANY}, ranks=(4,)
    ),
    "DequantizeLinear": Rule(quantizers.dequantize_linear, (10, 28), _QUANTIZED, codes="read"),
    "Div": Rule(values.binary(operator.truediv), (6, 14), _LEGACY),
    "Dropout": Rule(import_constants.dropout, (7, 22), {"ratio": ANY, "seed": ANY}, spare=True),
    "Abs": Rule(values.unary(torch.abs), (6, 13)),
    "Celu": Rule(values.unary(F.celu, alpha=("alpha", 1.0)), (12, 12), {"alpha": ANY}),
    "Cos": Rule(values.unary(torch.cos), (7, 22)),
    "Elu": Rule(values.unary(F.elu, alpha=("alpha", 1.0)), (6, 22), {"alpha": ANY}),
    "Erf": Rule(values.unary(torch.erf), (9, 13)),
    "Exp": Rule(values.unary(torch.exp), (6, 13)),
    "Flatten": Rule(values.flatten, (1, 25), {"axis": ANY}, codes="moved"),
    "Gather": Rule(import_constants.gather, (1, 13), {"axis": ANY}),
    "Gemm": Rule(
        layers.gemm,
        (6, 13),
        {**_LEGACY, "alpha": ANY, "beta": ANY, "transA": (0,), "transB": (0, 1)},
        ranks=(2,),
    ),
    "GlobalAveragePool": Rule(layers.global_pool, (1, 22), ranks=(4,)),
    "GlobalMaxPool": Rule(layers.global_max_pool, (1, 22), ranks=(4,)),
    "GroupNormalization": Rule(
        layers.group_norm,
        (21, 21),
        {"epsilon": ANY, "num_groups": ANY, "stash_type": (1,)},
        ranks=(4,),
    ),
    "HardSigmoid": Rule(values.hard_sigmoid, (6, 22), {"alpha": ANY, "beta": ANY}),
    "HardSwish": Rule(values.unary(F.hardswish), (14, 22)),
    "Identity": Rule(import_constants.same, (1, 25), codes="moved"),
    "LeakyRelu": Rule(
        values.unary(F.leaky_relu, negative_slope=("alpha", 0.01)), (6, 16), {"alpha": ANY}
    ),
    "Log": Rule(values.unary(torch.log), (6, 13)),
    "LogSoftmax": Rule(values.softmax(F.log_softmax), (1, 13), {"axis": ANY}),
    "MatMul": Rule(layers.matmul, (1, 13)),
    "MaxPool": Rule(
        layers.max_pool,
        (1, 22),
        {**_WINDOW, "ceil_mode": (0, 1), "storage_order": (0, 1)},
        ranks=(4,),
        codes="moved",
    ),
    "Mul": Rule(values.binary(operator.mul), (6, 14), _LEGACY),
    "Neg": Rule(values.unary(torch.neg), (6, 13)),
    "Pad": Rule(axes.pad, (2, 25), {"mode": ANY, "pads": ANY, "value": ANY}),
    "PRelu": Rule(layers.prelu, (6, 16)),
    "QuantizeLinear": Rule(
        quantizers.quantize_linear, (10, 28), {**_QUANTIZED, "precision": (0, 1)}
    ),
    "Reciprocal": Rule(values.unary(torch.reciprocal), (6, 13)),
    "ReduceL2": Rule(layers.reduction(torch.norm, p=2.0), (1, 18), _REDUCED),
    "ReduceLogSumExp": Rule(layers.reduction(torch.logsumexp), (1, 18), _REDUCED),
    "ReduceMax": Rule(layers.reduction(torch.amax), (1, 20), _REDUCED),
    "ReduceMean": Rule(layers.reduction(torch.mean), (1, 18), _REDUCED),
    "ReduceMin": Rule(layers.reduction(torch.amin), (1, 20), _REDUCED),
    "ReduceSum": Rule(layers.reduction(torch.sum), (1, 13), _REDUCED),
    "Pow": Rule(values.power, (7, 15)),
    "Relu": Rule(values.unary(F.relu), (6, 14)),
    "Reshape": Rule(values.reshape, (1, 25), {"shape": ANY, "allowzero": (0, 1)}, codes="moved"),
    "Resize": Rule(values.resize, (11, 19), _RESIZED, ranks=(4,)),
    "Shape": Rule(import_constants.shape, (1, 25), {"start": ANY, "end": ANY}),
    "Sigmoid": Rule(values.unary(torch.sigmoid), (6, 13)),
    "Sin": Rule(values.unary(torch.sin), (7, 22)),
    "Selu": Rule(values.selu, (6, 22), {"alpha": ANY, "gamma": ANY}),
    "Softplus": Rule(values.unary(F.softplus), (1, 22)),
    "Softsign": Rule(values.unary(F.softsign), (1, 22)),
    "Slice": Rule(
        axes.slices, (1, 13), dict.fromkeys(("starts", "ends", "axes"), ANY), codes="moved"
    ),
    "Softmax": Rule(values.softmax(F.softmax), (1, 13), {"axis": ANY}),
    "Sqrt": Rule(values.unary(torch.sqrt), (6, 13)),
    "Squeeze": Rule(values.squeeze, (1, 25), {"axes": ANY}, codes="moved"),
    "Sub": Rule(values.binary(operator.sub), (6, 14), _LEGACY),
    "Tanh": Rule(values.unary(torch.tanh), (6, 13)),
    "Transpose": Rule(axes.transpose, (1, 25), {"perm": ANY}, codes="moved"),
    "Unsqueeze": Rule(values.unsqueeze, (1, 25), {"axes": ANY}, codes="moved"),
    "Upsample": Rule(values.upsample, (7, 10), {"mode": ANY, "scales": ANY}, ranks=(4,)),
}
