# SPDX-License-Identifier: Apache-2.0
"""A user's own files: a network, images and labels."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel, need
from ternary_ops.graph.state import load_state
from ternary_ops.nn import TernaryLayer

_MODEL_DO = "Write --model path/to/file.py:function, a function that returns a torch.nn.Module."
_DATA_DO = "Write --data path/to/file.py:function; it returns x, y or x, y, x_test, y_test."


def load_builder(text: str) -> Callable[[], nn.Module]:
    """The function of "file.py:function", checked by calling it once.

    Raises BadConfig for the text, UnsupportedModel for what the file holds.
    """
    build = load_function(text, "--model", _MODEL_DO)
    model = _called(build, text, _MODEL_DO)
    if not isinstance(model, nn.Module):
        what = f"a torch.nn.Module from {text}"
        raise UnsupportedModel(need(what, type(model).__name__, _MODEL_DO))
    checked: Callable[[], nn.Module] = build
    return checked


def load_onnx_builder(
    path: str, weights: Mapping[str, Tensor] | None
) -> tuple[Callable[[], nn.Module], Mapping[str, Tensor]]:
    """A builder of the network in an .onnx file, and its weights unless `weights` replace them.

    Raises BadConfig for a network that is quantized already, else as `interchange.load_onnx`.
    """
    from ternary_ops.interchange import load_onnx

    model = load_onnx(path)
    if any(isinstance(m, TernaryLayer) for m in model.modules()):
        do = "Pass the float network that it was made from."
        raise BadConfig(need(f"a float network in {path}", "an 8-bit one", do))
    state = model.state_dict() if weights is None else weights
    return lambda: copy.deepcopy(model), state


def load_function(text: str, option: str, do: str) -> Callable[[], Any]:
    """The function that "file.py:function" names.

    Raises BadConfig for the text, UnsupportedModel for a file that fails or lacks it.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise BadConfig(need(f"{option} with a file and a function", repr(text), do))
    if not Path(file).is_file():
        raise BadConfig(need(f"{option} with a file", f"{file}, which is none", do))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise BadConfig(need(f"{option} with a Python file", file, do))
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _called(lambda: loader.exec_module(module), file, do)
    found = getattr(module, name, None)
    if not callable(found):
        raise UnsupportedModel(need(f"{name}() in {file}", "no such function", do))
    function: Callable[[], Any] = found
    return function


def load_arrays(text: str) -> dict[str, NDArray[np.generic]]:
    """Arrays that "file.py:function" returns, by name: x, y and, if given, x_test, y_test.

    It returns them in this order, as arrays or tensors. Raises BadConfig for the text,
    UnsupportedModel for what the function does.
    """
    made = _called(load_function(text, "--data", _DATA_DO), text, _DATA_DO)
    if not isinstance(made, tuple | list) or len(made) not in (2, 4):
        got = f"{len(made)} values" if isinstance(made, tuple | list) else type(made).__name__
        raise UnsupportedModel(need(f"two or four arrays from {text}", got, _DATA_DO))
    arrays = [np.asarray(part) for part in made]
    return dict(zip(("x", "y", "x_test", "y_test"), arrays, strict=False))


def _called(function: Callable[[], Any], text: str, do: str) -> Any:
    try:
        return function()
    except Exception as error:  # the user's own code runs here: whatever it raises is the reason
        got = f"{type(error).__name__}: {error}"
        raise UnsupportedModel(need(f"{text} to run without arguments", got, do)) from error


def check_fit(build: Callable[[], nn.Module], weights: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights that are not the model's; raises FormatError with the first difference."""
    try:
        load_state(build(), weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        do = "Pass the weights of this architecture."
        raise FormatError(need(f"weights of the model in {path}", lines[0], do)) from error
