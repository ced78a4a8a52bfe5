# SPDX-License-Identifier: Apache-2.0
"""From a float network to trainable quantized layers, their ranges, and packed layers.

>>> plan = tops.plan(model, tops.TernaryConfig(zeros=0.9))
>>> [row.action for row in plan][:3]
['int8', 'ternary', 'ternary']
>>> plan["conv1"].reason
'first convolution'
>>> _ = tops.quantize_(model, plan)
>>> tops.calibrate(model, [x])
>>> model.conv1.input_range.shape
torch.Size([2])
"""

from typing import Any

from ternary_ops import _moved
from ternary_ops.graph.fold_batchnorm import fold_batchnorm_
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.ternarize import Ternarizer, ptq, register_ternarizer
from ternary_ops.prune import allocation as _scopes  # noqa: F401  # of TernaryConfig
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.convert import pack_, quantize_
from ternary_ops.quantize.correct import correct_bias_, recalibrate_batchnorm_
from ternary_ops.quantize.equalize import Equalized, equalize_
from ternary_ops.quantize.fallback import FallbackReport, fallback_
from ternary_ops.quantize.layer_sensitivity import SensitivityReport, sensitivity
from ternary_ops.quantize.plan_rows import Plan, PlanRow
from ternary_ops.quantize.plans import plan
from ternary_ops.quantize.recipes import RECIPES, Recipe, get_recipe
from ternary_ops.quantize.weights_file import load, save

__all__ = [
    "RECIPES",
    "Equalized",
    "FallbackReport",
    "Plan",
    "PlanRow",
    "Recipe",
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
    "save",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    return _moved.attribute(__name__, name)
