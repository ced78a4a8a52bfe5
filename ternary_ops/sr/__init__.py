# SPDX-License-Identifier: Apache-2.0
"""Super-resolution: published efficient networks, loaded from their own checkpoints, and our own.

Programs upscale without torch; each name loads its module at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ternary_ops import _moved
from ternary_ops.errors import needs_package

if TYPE_CHECKING:
    from ternary_ops.sr.inference.colors import keep_colors
    from ternary_ops.sr.inference.pretrained import MODELS, open_model
    from ternary_ops.sr.inference.tiling import Upscaler
    from ternary_ops.sr.inference.to_program import to_program
    from ternary_ops.sr.inference.upscaling import upscale
    from ternary_ops.sr.models.attention import fuse_attention_
    from ternary_ops.sr.models.base import SRNetwork
    from ternary_ops.sr.models.checkpoint import load
    from ternary_ops.sr.models.efdn import EFDN
    from ternary_ops.sr.models.fmen import FMEN, FMEN_FULL, balance_, to_unit_range_
    from ternary_ops.sr.models.fold import fold
    from ternary_ops.sr.models.imdn import IMDN
    from ternary_ops.sr.models.residual import MSRResNet, RRDBNet
    from ternary_ops.sr.models.rfdn import RFDN, RLFN
    from ternary_ops.sr.semi import hosts
    from ternary_ops.sr.semi.degrader import Degrader, box_down, conserve
    from ternary_ops.sr.semi.semi_sr import SemiSR
    from ternary_ops.sr.semi.streams import Streams
    from ternary_ops.sr.semi.weights import SemiWeights
    from ternary_ops.sr.training.losses import EdgeLoss
    from ternary_ops.sr.training.patches import PairedPatches, Patches, UnpairedPatches
    from ternary_ops.sr.training.trainer import SRTrainConfig, train

_HOME = {
    "balance_": "models.fmen",
    "Degrader": "semi.degrader",
    "box_down": "semi.degrader",
    "conserve": "semi.degrader",
    "EdgeLoss": "training.losses",
    "EFDN": "models.efdn",
    "FMEN": "models.fmen",
    "FMEN_FULL": "models.fmen",
    "fold": "models.fold",
    "fuse_attention_": "models.attention",
    "hosts": "semi",
    "IMDN": "models.imdn",
    "keep_colors": "inference.colors",
    "load": "models.checkpoint",
    "MODELS": "inference.pretrained",
    "MSRResNet": "models.residual",
    "open_model": "inference.pretrained",
    "PairedPatches": "training.patches",
    "Patches": "training.patches",
    "RFDN": "models.rfdn",
    "RLFN": "models.rfdn",
    "RRDBNet": "models.residual",
    "SemiSR": "semi.semi_sr",
    "SemiWeights": "semi.weights",
    "SRNetwork": "models.base",
    "SRTrainConfig": "training.trainer",
    "Streams": "semi.streams",
    "to_program": "inference.to_program",
    "to_unit_range_": "models.fmen",
    "train": "training.trainer",
    "UnpairedPatches": "training.patches",
    "upscale": "inference.upscaling",
    "Upscaler": "inference.tiling",
}

__all__ = [
    "Degrader",
    "EFDN",
    "EdgeLoss",
    "FMEN",
    "FMEN_FULL",
    "IMDN",
    "MODELS",
    "MSRResNet",
    "PairedPatches",
    "Patches",
    "RFDN",
    "RLFN",
    "RRDBNet",
    "SRNetwork",
    "SRTrainConfig",
    "SemiSR",
    "SemiWeights",
    "Streams",
    "UnpairedPatches",
    "Upscaler",
    "balance_",
    "box_down",
    "conserve",
    "fold",
    "fuse_attention_",
    "hosts",
    "keep_colors",
    "load",
    "open_model",
    "to_program",
    "to_unit_range_",
    "train",
    "upscale",
]


def __getattr__(name: str) -> Any:
    """Load a name at first use; MissingExtra when it needs torch and torch is absent."""
    do = "pip install 'ternary-ops[sr]', or upscale with a program: sr.open_model."
    with needs_package("torch", f"sr.{name}", do):
        if name not in _HOME:
            return _moved.attribute(__name__, name)
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    value = globals()[name] = getattr(module, name)
    return value
