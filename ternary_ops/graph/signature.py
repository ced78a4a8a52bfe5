# SPDX-License-Identifier: Apache-2.0
"""Call signature of a network: the argument that is its one input, the tensor that is its result.

`forward(self, x)`, `forward(self, pixel_values=None, labels=None, return_dict=None)` and networks
that return a dict, a tuple, a dataclass or a nesting of these are all accepted, as long as one
tensor goes in and one of the returned tensors is the result.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ternary_ops.errors import TernaryOpsError, UnsupportedModel, first_line, need
from ternary_ops.graph.wrappers import unwrap

LABELS = ("labels", "label")  # of a batch: what is beside the input
_ONE_INPUT = "a network of one tensor input"
_RETURN = "Wrap it in a module that returns the tensor that counts."
_WRAP = "Wrap it in a module that takes one tensor and makes the others itself."


@dataclass(frozen=True)
class Signature:
    """input: the parameter of forward that is the input ("": the first of *args). beside: constant
    arguments. output: which of several output tensors counts; None where there is one.
    """

    input: str
    keyword: bool = False
    beside: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None

    def call(self, model: nn.Module, x: Any) -> Any:
        """Run the network on the tensor x; raises UnsupportedModel where it fails."""
        with naming_failures(x):
            return model(*self._first(x), **self._named(x))

    def forward(self, model: nn.Module, x: Any) -> Any:
        """Like `call` but without hooks, for tracing: returns the one tensor, or a tuple of all."""
        found = outputs_of(model.forward(*self._first(x), **self._named(x)))
        if self.output in found:
            return found[self.output]
        return next(iter(found.values())) if len(found) == 1 else tuple(found.values())

    def result(self, model: nn.Module, x: Tensor) -> Tensor:
        """The tensor that counts of what the network returns for x; see `pick`."""
        return pick(self.call(model, x), self.output, "Say which counts: output=NAME.")

    def _first(self, x: Any) -> tuple[Any, ...]:
        return () if self.keyword else (x,)

    def _named(self, x: Any) -> dict[str, Any]:
        return {**self.beside, **({self.input: x} if self.keyword else {})}


@contextmanager
def naming_failures(x: Tensor) -> Iterator[None]:
    """Re-raise a network's errors on x as UnsupportedModel with the shape of x."""
    try:
        yield
    except (TernaryOpsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the network's own code runs here: whatever it raises is the reason
        got = f"{type(error).__name__}: {first_line(error)}"
        do = "Pass what the network takes, and see that it runs on this in eval mode."
        what = f"a network that computes on an input of shape {list(x.shape)}"
        raise UnsupportedModel(need(what, got, do)) from error


def signature_of(model: nn.Module, example: object = None, output: str | None = None) -> Signature:
    """Signature of a network called with one tensor, or as in `example`: a tensor, a tuple of
    positional or a dict of keyword arguments, one of which is a tensor.

    Without a name the input is the parameter of forward that has no default, or the first one.
    Raises UnsupportedModel naming the inputs where there is more than one.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if isinstance(example, tuple):
        names = [p.name for p in named if p.kind is not p.KEYWORD_ONLY]
        if len(example) > len(names):
            got = f"{len(example)} arguments"
            do = "Pass one tensor, or a dict of keyword arguments."
            raise UnsupportedModel(need(f"arguments of forward ({', '.join(names)})", got, do))
        example = dict(zip(names, example, strict=False))
    beside: dict[str, Any] = {}
    if isinstance(example, Mapping):
        tensors = [str(name) for name, value in example.items() if isinstance(value, Tensor)]
        beside = {str(n): v for n, v in example.items() if not isinstance(v, Tensor)}
        unknown = _unknown([*tensors, *beside], parameters)
        if unknown:
            do = f"It takes {', '.join(p.name for p in named)}."
            raise UnsupportedModel(need("arguments of forward in example", unknown, do))
    else:
        tensors = [p.name for p in named if p.default is p.empty] or [p.name for p in named[:1]]
        if not named and any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return Signature("", output=output)
    if len(tensors) != 1:
        raise UnsupportedModel(need(_ONE_INPUT, ", ".join(tensors) or "none", _WRAP))
    positional = [p.name for p in named[:1] if p.kind is not p.KEYWORD_ONLY]
    return Signature(tensors[0], tensors != positional, beside, output)


def _unknown(names: list[str], parameters: list[inspect.Parameter]) -> str:
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return ""
    known = {p.name for p in parameters}
    return ", ".join(name for name in names if name not in known)


def tensor_of(model: nn.Module, example: object) -> object:
    """The one tensor of an example, see signature_of; what is no tuple or dict passes through."""
    if isinstance(example, Mapping):
        return example[signature_of(model, example).input]
    if isinstance(example, tuple):
        signature_of(model, example)  # refuses several tensors
        return next(value for value in example if isinstance(value, Tensor))
    return example


def outputs_of(value: object, name: str = "") -> dict[str, Any]:
    """Every tensor in what a network returned, by its name: keys, fields and indices joined by
    dots; "output" for a tensor that is all there is.
    """
    if isinstance(value, (Tensor, fx.Proxy)):
        return {name or "output": value}
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    else:
        return {}
    found: dict[str, Any] = {}
    for key, part in parts:
        found |= outputs_of(part, f"{name}.{key}" if name else str(key))
    return found


def pick(value: object, output: str | None = None, do: str = _RETURN) -> Tensor:
    """The one tensor in what a network returned, or the one named `output`; do: what to do where
    there are several.

    Raises UnsupportedModel listing the names there are where none or several answer.
    """
    found = outputs_of(value)
    names = ", ".join(found) or f"none in {type(value).__name__}"
    if output is not None:
        if output not in found:
            raise UnsupportedModel(need(f"a network with an output {output!r}", names, "Pick one."))
        tensor: Tensor = found[output]
        return tensor
    if len(found) != 1:
        do = do if found else _RETURN
        raise UnsupportedModel(need("a network that returns one tensor", names, do))
    (tensor,) = found.values()
    return tensor


def result(model: nn.Module, x: Tensor) -> Tensor:
    """The one tensor that a network, perhaps wrapped, returns for the tensor x."""
    return pick(signature_of(unwrap(model)).call(model, x))
