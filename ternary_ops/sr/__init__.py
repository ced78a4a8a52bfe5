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
    from ternary_ops.sr.models.rfdn import RFDN, RLFN
    from ternary_ops.sr.training.losses import EdgeLoss
    from ternary_ops.sr.training.patches import PairedPatches, Patches, UnpairedPatches
    from ternary_ops.sr.training.trainer import SRTrainConfig, train

_HOME = {
    "EFDN": "models.efdn",
    "EdgeLoss": "training.losses",
    "FMEN": "models.fmen",
    "FMEN_FULL": "models.fmen",
    "IMDN": "models.imdn",
    "MODELS": "inference.pretrained",
    "PairedPatches": "training.patches",
    "Patches": "training.patches",
    "RFDN": "models.rfdn",
    "RLFN": "models.rfdn",
    "SRTrainConfig": "training.trainer",
    "SRNetwork": "models.base",
    "UnpairedPatches": "training.patches",
    "Upscaler": "inference.tiling",
    "balance_": "models.fmen",
    "fold": "models.fold",
    "fuse_attention_": "models.attention",
    "keep_colors": "inference.colors",
    "load": "models.checkpoint",
    "open_model": "inference.pretrained",
    "to_program": "inference.to_program",
    "to_unit_range_": "models.fmen",
    "train": "training.trainer",
    "upscale": "inference.upscaling",
}

__all__ = [
    "EFDN",
    "EdgeLoss",
    "FMEN",
    "FMEN_FULL",
    "IMDN",
    "MODELS",
    "PairedPatches",
    "Patches",
    "RFDN",
    "RLFN",
    "SRTrainConfig",
    "SRNetwork",
    "UnpairedPatches",
    "Upscaler",
    "balance_",
    "fold",
    "fuse_attention_",
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
