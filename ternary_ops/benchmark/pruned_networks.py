# SPDX-License-Identifier: Apache-2.0
"""Whole networks to time: built by name, made ternary and pruned at one stroke, ready to compile.

Weights are random (He et al. 2015), for time depends on how many quads are left, not on what they
hold. BatchNorm takes its statistics from the images *after* pruning, so that activations stay in
range and a comparison of outputs means something.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ternary_ops import models
from ternary_ops.compiler import compile  # noqa: A004
from ternary_ops.errors import BadConfig, MissingExtra, need
from ternary_ops.graph.replace import replace_modules
from ternary_ops.nn import TernaryConv2d, TernaryLinear
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.patterns import get_pattern
from ternary_ops.prune import Pruner
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.convert import quantize_
from ternary_ops.quantize.correct import recalibrate_batchnorm_
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.quantize.plans import plan
from ternary_ops.quantize.recipes import RECIPES, get_recipe
from ternary_ops.runtime import Program

# Name -> (channels, image side).
SHAPES = {
    "resnet18": (3, 224),
    "resnet34": (3, 224),
    "resnet50": (3, 224),
    "mobilenet_v2": (3, 224),
    "vgg16_bn": (3, 224),
    "regnet_x_400mf": (3, 224),
    "efficientnet_lite0": (3, 224),
    "cifar_resnet": (3, 32),
    "digits_resnet": (1, 8),
}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 16


@dataclass(frozen=True)
class Pruned:
    """One network in three forms that hold the same weights.

    trained: nn layers, fake-quantized. dense: float32, integer weights times their scale.
    program: trained, compiled. x: float32 [N, C, H, W] that were not calibrated on.
    """

    trained: nn.Module
    dense: nn.Module
    program: Program
    x: Tensor


def data_folder() -> Path | None:
    """The folder of data packs that TERNARY_OPS_DATA names; None where it is not set."""
    given = os.environ.get("TERNARY_OPS_DATA")
    if not given:
        return None
    if not Path(given).is_dir():
        do = "Correct it, or unset it to use random images."
        raise BadConfig(need("a folder of data packs in TERNARY_OPS_DATA", given, do))
    return Path(given)


def images(count: int, channels: int, size: int, start: int = 0) -> Tensor:
    """float32 [count, channels, size, size], normalized as ImageNet's: real ones where
    `data_folder` has them (from number `start` on, spread over the classes), else random ones.

    Raises BadConfig for more than the 1000 real images, MissingExtra without Pillow.
    """
    folder = data_folder()
    pack = folder / "imagenet1000" / "images.npz" if folder is not None and channels == 3 else None
    if pack is None or not pack.is_file():
        return torch.randn(
            (count, channels, size, size), generator=torch.Generator().manual_seed(start)
        )
    try:
        from PIL import Image
    except ImportError as error:
        do = "pip install 'ternary-ops[image]'"
        raise MissingExtra(need("Pillow for real images", "none installed", do)) from error
    with np.load(pack) as archive:
        data, ends = archive["data"], archive["off"]
    known = len(ends) - 1
    if count > known:
        raise BadConfig(need(f"at most {known} real images", count, "Ask for fewer."))
    # 37 has no divisor in common with 1000: consecutive numbers are far apart.
    chosen = [(start + k) * 37 % known for k in range(count)]
    out = np.empty((count, size, size, 3), np.float32)
    for row, i in zip(out, chosen, strict=True):
        image = Image.open(io.BytesIO(data[ends[i] : ends[i + 1]].tobytes())).convert("RGB")
        side = min(image.size)
        if side >= size:  # the center, as in evaluation; larger than the photograph: stretched
            left, top = (image.width - size) // 2, (image.height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        else:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        row[:] = (np.asarray(image, np.float32) / 255 - _MEAN) / _STD
    return torch.from_numpy(np.ascontiguousarray(out.transpose(0, 3, 1, 2)))


def network(name: str) -> nn.Module:
    """A network of SHAPES with the random weights of seed 0: torchvision's where it is installed,
    else the package's own of the same layout.
    """
    torch.manual_seed(0)
    try:
        from torchvision import models as theirs
    except ImportError:
        theirs = None
    build = getattr(theirs, name, None)
    model: nn.Module = build(weights=None) if build is not None else getattr(models, name)()
    return model.eval()


def shape_of(name: str, size: int | None = None) -> tuple[int, int]:
    """Channels and side of the images; BadConfig for a network that is not in SHAPES."""
    if name not in SHAPES:
        raise BadConfig(need(f"one of the models {', '.join(SHAPES)}", repr(name), "Pick one."))
    channels, side = SHAPES[name]
    return channels, side if size is None else size


def plan_of(
    model: nn.Module, pattern: str, zeros: float, scope: str, every_layer: bool, x: Tensor
) -> Plan:
    """The plan of a bench: convolutions but the first and depthwise ones ternary with that share of
    empty units ("int8+1x4": at 8 bits), the rest, linear layers too, dense at 8 bits;
    every_layer: all of them pruned. The name of a recipe in place of a pattern: its plan. x: an
    input, for scope "time".
    """
    if pattern in RECIPES:
        return get_recipe(pattern).with_zeros(zeros, None).plan(model, example=x)
    name, extra = _split(pattern)
    int8 = TernaryConfig(weights="int8")
    if name == "int8" and not extra:
        return plan(model, int8)
    weights, unit = ("int8", extra) if name == "int8" else ("ternary", name)
    config = TernaryConfig(weights, zeros=zeros, pattern=unit, scope=scope)
    if every_layer:
        return plan(model, config, rules={"*": config}, example=x)
    linear = {n: int8 for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return plan(model, config, rules=linear, example=x)


@torch.no_grad()
def pruned(
    build: Callable[[], nn.Module],
    x: Tensor,
    sample: Tensor,
    zeros: float,
    pattern: str = "1x4",
    scope: str = "layer",
    every_layer: bool = False,
) -> Pruned:
    """Build a network, prune it to `zeros` by magnitude, set BatchNorm and ranges from `sample`.

    pattern: a recipe's name, or one of a plan, with "+permute" for channels reordered by the
    compiler; "int8": dense, 8 bits; "int8+1x4": 8-bit weights in quads. x: what is timed and
    compared.
    scope "layer": every layer gets the same share; "global": random weights of different size
    compete, and wide layers lose most. Raises BadConfig for any other pattern.
    """
    model = build()
    quantize_(model, plan_of(model, pattern, zeros, scope, every_layer, x[:1]))
    if pattern != "int8":
        Pruner(model, schedule="one_cycle", total_steps=1).step()
    recalibrate_batchnorm_(model, torch.split(sample, _BATCH))
    calibrate(model, torch.split(sample, _BATCH))
    program = compile(model, x[:1], permute=pattern.endswith("+permute"))
    return Pruned(model.eval(), dense_twin(model), program, x)


def _split(pattern: str) -> tuple[str, str]:
    """The pattern of the plan, and what follows its "+"."""
    name, plus, extra = pattern.partition("+")
    if name == "int8" and extra:
        get_pattern(extra)
    elif plus and extra != "permute":
        what = 'as pattern "1x4", "element", ... with or without "+permute", "int8" or "int8+1x4"'
        raise BadConfig(need(what, repr(pattern), "Pick one."))
    return name, extra


def by_name(
    name: str,
    zeros: float,
    pattern: str = "1x4",
    batch: int = 1,
    size: int | None = None,
    scope: str = "layer",
    samples: int = 32,
) -> Pruned:
    """`pruned` for a network of SHAPES, on real images where there are any."""
    channels, side = shape_of(name, size)
    x = images(batch, channels, side, start=samples)
    sample = images(samples, channels, side)
    return pruned(partial(network, name), x, sample, zeros, pattern, scope)


def dense_twin(model: nn.Module) -> nn.Module:
    """The float32 network of the same weights: what baselines are given and are compared with."""
    twin = copy.deepcopy(model).eval()
    layers: dict[nn.Module, nn.Module] = {}
    for module in twin.modules():
        if isinstance(module, (TernaryConv2d, TernaryLinear)):
            layers[module] = module.to_float()
    replace_modules(twin, layers)
    return twin
