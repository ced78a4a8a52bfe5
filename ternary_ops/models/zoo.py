# SPDX-License-Identifier: Apache-2.0
"""Networks of torchvision and timm by name, with the classes of the images or weights."""

from __future__ import annotations

import contextlib
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ternary_ops.errors import BadConfig, MissingExtra, UnsupportedModel, need
from ternary_ops.graph.state import load_state

# What the published weights of both libraries expect of an RGB image in 0..1.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Zoo:
    """One of the two libraries."""

    name: str
    names: Callable[[Any], list[str]]
    make: Callable[[Any, str, int, int], nn.Module]
    trained: Callable[[Any, str, int, int], nn.Module]


def _torchvision(library: Any, name: str, classes: int, channels: int) -> nn.Module:
    _rgb(channels)
    model: nn.Module = library.models.get_model(name, weights=None, num_classes=classes)
    return model


def _torchvision_trained(library: Any, name: str, classes: int, channels: int) -> nn.Module:
    """Published weights, but for layers whose shape depends on the number of classes."""
    model = _torchvision(library, name, classes, channels)
    published = library.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
    ours = model.state_dict()
    fitting = {k: v for k, v in published.items() if k in ours and v.shape == ours[k].shape}
    load_state(model, fitting, strict=False)
    return model


def _timm(library: Any, name: str, classes: int, channels: int) -> nn.Module:
    model: nn.Module = library.create_model(name, num_classes=classes, in_chans=channels)
    return model


def _timm_trained(library: Any, name: str, classes: int, channels: int) -> nn.Module:
    options = {"num_classes": classes, "in_chans": channels}
    model: nn.Module = library.create_model(name, pretrained=True, **options)
    return model


def _rgb(channels: int) -> None:
    if channels != 3:
        do = "Leave --gray out, or take a network of timm."
        raise BadConfig(need("3 channels for networks of torchvision", channels, do))


ZOOS = {
    "torchvision": Zoo(
        "torchvision",
        lambda library: list(library.models.list_models()),
        _torchvision,
        _torchvision_trained,
    ),
    "timm": Zoo("timm", lambda library: list(library.list_models()), _timm, _timm_trained),
}


def is_zoo(text: str) -> bool:
    """True if --model names a network of a library."""
    return text.partition(":")[0] in ZOOS


def full_name(text: str) -> str:
    """ "torchvision:alexnet" for "alexnet", which one of the libraries alone has; a full name is
    returned as it is.

    Raises BadConfig where both have it or neither has, MissingExtra without both libraries.
    """
    if is_zoo(text):
        return text
    installed = {}
    for zoo in ZOOS.values():
        with contextlib.suppress(ImportError, RuntimeError):  # the latter: made for another torch
            installed[zoo.name] = zoo.names(importlib.import_module(zoo.name))
    if not installed:
        do = "pip install torchvision timm, or write FILE.py:FUNCTION."
        raise MissingExtra(need(f"torchvision or timm for the network {text!r}", "neither", do))
    homes = [name for name, known in installed.items() if text in known]
    if len(homes) == 1:
        return f"{homes[0]}:{text}"
    got = f"it in {' and '.join(homes)}" if homes else f"none in {' and '.join(installed)}"
    do = f"Write torchvision:{text} or timm:{text}." if homes else "Correct the name."
    raise BadConfig(need(f"the network {text!r} in one library", got, do))


def zoo_builder(
    text: str,
    classes: int,
    channels: int = 3,
    weights: Mapping[str, Tensor] | None = None,
    trained: bool = False,
) -> Callable[[], nn.Module]:
    """A function that makes the network of "torchvision:NAME" or "timm:NAME".

    It has `classes` outputs, or as many as `weights`, a state dict of it, were trained for.
    trained: with the weights that the library publishes (it downloads them).

    Raises MissingExtra without the library, BadConfig for a name that it does not know,
    UnsupportedModel where it cannot make or download the network.
    """
    kind, _, name = text.partition(":")
    zoo = ZOOS[kind]
    try:
        library = importlib.import_module(kind)
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        do = f"pip install {kind}, in the release that fits your torch."
        raise MissingExtra(need(f"the package {kind} for --model {text}", reason, do)) from error
    known = zoo.names(library)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3) or [*known[:3], "..."])
        raise BadConfig(need(f"a network that {kind} knows", repr(name), f"Near: {near}."))
    if weights is not None:
        classes = _classes_of(weights, _made(zoo.make, library, name, classes, channels), classes)
    make = zoo.trained if trained else zoo.make
    return lambda: _made(make, library, name, classes, channels)


def _made(make: Any, library: Any, name: str, classes: int, channels: int) -> nn.Module:
    try:
        model: nn.Module = make(library, name, classes, channels)
    except BadConfig:
        raise
    except Exception as error:  # libraries raise many kinds, and so does a missing network
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        do = "Pass --weights FILE where weights cannot be downloaded."
        raise UnsupportedModel(need(f"{name} to be made", reason, do)) from error
    return model


def _classes_of(weights: Mapping[str, Tensor], model: nn.Module, classes: int) -> int:
    """The number of outputs of the state dict, seen in tensors whose first axis is `classes`."""
    for key, value in model.state_dict().items():
        theirs = weights.get(key)
        if theirs is None or theirs.shape == value.shape or theirs.ndim != value.ndim:
            continue
        if value.shape[0] == classes and theirs.shape[1:] == value.shape[1:]:
            return int(theirs.shape[0])
    return classes
