# SPDX-License-Identifier: Apache-2.0
"""From a float network to trainable quantized layers, their ranges, and packed layers."""

from ternary_ops.quantize.allocate import Budget
from ternary_ops.quantize.calibrate import calibrate
from ternary_ops.quantize.config import TernaryConfig
from ternary_ops.quantize.convert import pack_, quantize_
from ternary_ops.quantize.correct import correct_bias_, recalibrate_batchnorm_
from ternary_ops.quantize.distill import Distillation
from ternary_ops.quantize.equalize import Equalized, equalize_
from ternary_ops.quantize.fallback import FallbackReport, fallback_
from ternary_ops.quantize.files import load, save
from ternary_ops.quantize.fold import fold_batchnorm_
from ternary_ops.quantize.plan import Plan, PlanRow, plan
from ternary_ops.quantize.recipes import RECIPES, Recipe, get_recipe
from ternary_ops.quantize.reorder import ReorderRow, reorder_channels_
from ternary_ops.quantize.sensitivity import SensitivityReport, sensitivity
from ternary_ops.quantize.ternarize import Ternarizer, ptq, register_ternarizer

__all__ = [
    "RECIPES",
    "Budget",
    "Distillation",
    "Equalized",
    "FallbackReport",
    "Plan",
    "PlanRow",
    "Recipe",
    "ReorderRow",
    "SensitivityReport",
    "TernaryConfig",
    "Ternarizer",
    "calibrate",
    "correct_bias_",
    "equalize_",
    "fallback_",
    "fold_batchnorm_",
    "get_recipe",
    "load",
    "pack_",
    "plan",
    "ptq",
    "quantize_",
    "recalibrate_batchnorm_",
    "register_ternarizer",
    "reorder_channels_",
    "save",
    "sensitivity",
]
