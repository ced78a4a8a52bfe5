# SPDX-License-Identifier: Apache-2.0
"""A job from the user's own files: `--model file.py:function --data x.npz --weights w`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel, need

_MODEL_DO = "Write --model path/to/file.py:function, a function that returns a torch.nn.Module."


def load_builder(text: str) -> Callable[[], nn.Module]:
    """The function of "file.py:function", checked by calling it once.

    Raises BadConfig for the text, UnsupportedModel for what the file holds.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise BadConfig(need("--model names a file and a function", repr(text), _MODEL_DO))
    if not Path(file).is_file():
        raise BadConfig(need("--model names a file", f"{file}, which is none", _MODEL_DO))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise BadConfig(need("--model names a Python file", file, _MODEL_DO))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        build = getattr(module, name, None)
        if not callable(build):
            raise UnsupportedModel(need(f"{file} defines {name}()", "no such function", _MODEL_DO))
        model = build()
    except UnsupportedModel:
        raise
    except Exception as error:  # the user's own code runs here: whatever it raises is the reason
        got = f"{type(error).__name__}: {error}"
        raise UnsupportedModel(need(f"{text} runs without arguments", got, _MODEL_DO)) from error
    if not isinstance(model, nn.Module):
        what = f"{text} returns a torch.nn.Module"
        raise UnsupportedModel(need(what, type(model).__name__, _MODEL_DO))
    checked: Callable[[], nn.Module] = build
    return checked


def load_weights(path: str | Path) -> Mapping[str, Tensor]:
    """A state dict from .safetensors, or from torch.save read with weights_only=True.

    Raises FormatError for anything else.
    """
    do = "Save model.state_dict() with torch.save or safetensors."
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what a damaged archive raises depends on where it is damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(need(f"{path} holds a state dict", reason, do)) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FormatError(need(f"{path} holds a state dict", type(state).__name__, do))
    return state


def check_fit(build: Callable[[], nn.Module], weights: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights that are not the model's; raises FormatError with the first difference."""
    try:
        build().load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        do = "Pass the weights of this architecture."
        raise FormatError(need(f"{path} fits the model", lines[0], do)) from error
