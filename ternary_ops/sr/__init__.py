# SPDX-License-Identifier: Apache-2.0
"""Super-resolution: published efficient networks, loaded from their own checkpoints, and our own.

Programs upscale without torch; each name loads its module at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ternary_ops.errors import MissingExtra, need

if TYPE_CHECKING:
    from ternary_ops.sr.attention import fuse_attention_
    from ternary_ops.sr.colors import keep_colors
    from ternary_ops.sr.convert import to_program
    from ternary_ops.sr.efdn import EFDN
    from ternary_ops.sr.files import load
    from ternary_ops.sr.fmen import FMEN, FMEN_FULL, balance_, to_unit_range_
    from ternary_ops.sr.folding import fold
    from ternary_ops.sr.images import upscale
    from ternary_ops.sr.imdn import IMDN
    from ternary_ops.sr.losses import EdgeLoss
    from ternary_ops.sr.network import SRNetwork
    from ternary_ops.sr.programs import MODELS, open_model
    from ternary_ops.sr.rfdn import RFDN, RLFN
    from ternary_ops.sr.tiles import Upscaler
    from ternary_ops.sr.training import Patches, SRCourse, train

_HOME = {
    "EFDN": "efdn",
    "EdgeLoss": "losses",
    "FMEN": "fmen",
    "FMEN_FULL": "fmen",
    "IMDN": "imdn",
    "MODELS": "programs",
    "Patches": "training",
    "RFDN": "rfdn",
    "RLFN": "rfdn",
    "SRCourse": "training",
    "SRNetwork": "network",
    "Upscaler": "tiles",
    "balance_": "fmen",
    "fold": "folding",
    "fuse_attention_": "attention",
    "keep_colors": "colors",
    "load": "files",
    "open_model": "programs",
    "to_program": "convert",
    "to_unit_range_": "fmen",
    "train": "training",
    "upscale": "images",
}

__all__ = [
    "EFDN",
    "EdgeLoss",
    "FMEN",
    "FMEN_FULL",
    "IMDN",
    "MODELS",
    "Patches",
    "RFDN",
    "RLFN",
    "SRCourse",
    "SRNetwork",
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
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        do = "pip install 'ternary-ops[sr]', or upscale with a program: sr.open_model."
        raise MissingExtra(need(f"sr.{name} needs PyTorch", "none installed", do)) from error
    value = globals()[name] = getattr(module, name)
    return value
