# SPDX-License-Identifier: Apache-2.0
"""Weights that others trained, from a file; no code in it runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ternary_ops.errors import FormatError, need

# What training scripts put around a state dict; an average of weights is the better network.
_WRAPPERS = ("params_ema", "params", "state_dict", "model")


def load_weights(path: str | Path) -> Mapping[str, Tensor]:
    """A state dict from .safetensors, .npz, or torch.save read with weights_only=True.

    A dict that holds it under "params_ema", "params", "state_dict" or "model" is unwrapped, and
    "module." in front of every name is dropped. Raises FormatError for anything else.
    """
    do = "Save model.state_dict() with torch.save or safetensors."
    try:
        state = _read(Path(path))
    except FileNotFoundError:
        raise
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise FormatError(need(f"a state dict in {path}", reason, do)) from error
    while isinstance(state, Mapping) and not _flat(state):
        inner = next((state[name] for name in _WRAPPERS if name in state), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not _flat(state):
        raise FormatError(need(f"a state dict in {path}", type(state).__name__, do))
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _flat(state: Mapping[object, object]) -> bool:
    return all(isinstance(value, Tensor) for value in state.values())


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    # Scripts keep their options beside the weights; a Namespace is a dict with dots, and runs none.
    with torch.serialization.safe_globals([argparse.Namespace]):
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    return found
