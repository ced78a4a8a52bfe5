# SPDX-License-Identifier: Apache-2.0
"""Programs and, between them, parts of the network that PyTorch runs: islands."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ternary_ops.compiler.read import FIRST, LAST
from ternary_ops.errors import (
    TernaryOpsError,
    UnsupportedModel,
    UnsupportedShape,
    first_line,
    need,
)
from ternary_ops.runtime import Program

_SHOWN = 8  # names of islands in a line
Turned = tuple[bool, bool]
Shapes = tuple[tuple[int, ...] | None, ...]


@dataclass
class Island:
    """A part of the network that runs in PyTorch, and why.

    names   paths of the modules it lies in; "" for the model's own forward
    kinds   the modules and functions it calls
    macs    its multiply-adds on the example
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    reason: str
    macs: float
    run: Callable[..., Sequence[Any]] = field(repr=False)
    _last: tuple[Shapes, Shapes] | None = field(default=None, repr=False)

    def __call__(self, *given: Any) -> Sequence[Any]:
        """What it makes of values of the network.

        Raises UnsupportedModel where PyTorch fails, UnsupportedShape where the same shapes gave
        others before: then a shape depends on the numbers.
        """
        name, read = _joined(self.names), _shapes(given)
        try:
            with torch.no_grad():
                made = self.run(*given)
        except (TernaryOpsError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the network's own code: whatever it raises is the reason
            got = f"{type(error).__name__}: {first_line(error)}"
            what = f"the torch island {name} to run on inputs of shape {_listed(read)}"
            raise UnsupportedModel(need(what, got, "Pass inputs like example_input.")) from error
        shapes = _shapes(made)
        if self._last is not None and self._last[0] == read and self._last[1] != shapes:
            what = f"the same shapes of the torch island {name} in every call, {_listed(read)} ->"
            got = f"{_listed(self._last[1])} before and {_listed(shapes)} now"
            do = "Shapes that depend on numbers are not supported: run this model in PyTorch."
            raise UnsupportedShape(need(what, got, do))
        self._last = read, shapes
        return made

    def __str__(self) -> str:
        kinds = [f"{n} {kind}" if n > 1 else kind for kind, n in Counter(self.kinds).items()]
        return f"{_joined(self.names)} ({', '.join(kinds)})"


@dataclass(frozen=True)
class Part:
    """A program or an island, the values that it reads and makes, and those read here last.

    turned: the network has the images that the program reads, or makes, with the channels last.
    """

    run: Program | Island
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    last: tuple[str, ...] = ()
    turned: Turned = (False, False)


class IslandProgram:
    """Programs and eager torch parts in sequence. Called as a Program; cannot be saved."""

    def __init__(self, parts: Sequence[Part], macs: float) -> None:
        """parts: the first reads "x", the last makes the output. macs: of the network on the
        example, islands included.
        """
        self._steps = tuple(parts)
        self._macs = macs

    def __call__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Run x, as `Program` takes it, through every part; returns float32."""
        if not isinstance(x, np.ndarray) or (x.dtype != np.uint8 and x.dtype.kind != "f"):
            got = getattr(x, "dtype", type(x).__name__)
            what, do = "a NumPy array of floats or uint8 as a program's input", "Convert it first."
            raise UnsupportedShape(need(what, got, do))
        # A copy: an island may write into it.
        values: dict[str, Any] = {"x": torch.from_numpy(np.array(x, np.float32, order="C"))}
        for step in self._steps:
            given = [values[name] for name in step.reads]
            made = _through(step, given[0]) if _is_program(step) else step.run(*given)
            values.update(zip(step.makes, made, strict=True))
            for name in step.last:
                del values[name]
        result: Tensor = values[self._steps[-1].makes[-1]]
        return np.ascontiguousarray(result.float().numpy())

    @property
    def parts(self) -> tuple[Program | Island, ...]:
        """The programs and islands, in the order in which they run."""
        return tuple(step.run for step in self._steps)

    @property
    def islands(self) -> tuple[str, ...]:
        """Paths of the modules in which the islands lie; "" for the model's own forward."""
        islands = [part for part in self.parts if isinstance(part, Island)]
        return tuple(dict.fromkeys(name for island in islands for name in island.names))

    @property
    def share(self) -> float:
        """Share of the multiply-adds that PyTorch does, 0 to 1, as torch's FlopCounterMode counts
        them on the example: convolutions and products of matrices.
        """
        inside = sum(part.macs for part in self.parts if isinstance(part, Island))
        return inside / self._macs if self._macs else 1.0

    def summary(self) -> str:
        """The tables of the programs and, between them, one line for each island."""
        lines = [f"{self._inside()} torch islands"]
        for part in self.parts:
            if isinstance(part, Island):
                share = part.macs / self._macs if self._macs else 1.0
                lines.append(f"torch island {part}, {share:.1%}: {part.reason}")
            else:
                lines.append(part.summary())
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        """Raises UnsupportedModel: a program file runs without PyTorch."""
        what = "a program that runs without PyTorch to save"
        do = "Replace these modules by supported ones (compile without islands lists why)."
        raise UnsupportedModel(need(what, f"torch islands: {_joined(self.islands)}", do))

    def __repr__(self) -> str:
        """Number of parts, share of the multiply-adds in PyTorch, names of the islands."""
        inside = f"{self._inside()} islands in PyTorch: {_joined(self.islands)}"
        return f"IslandProgram({len(self.parts)} parts, {inside})"

    def _inside(self) -> str:
        count = sum(isinstance(part, Island) for part in self.parts)
        return f"{self.share:.1%} of the multiply-adds in {count}"


def _is_program(step: Part) -> bool:
    return not isinstance(step.run, Island)


def turn(value: Tensor, order: Sequence[int]) -> Tensor:
    """An image with its axes in another order, in memory too."""
    return value.permute(*order).contiguous()


def _through(step: Part, value: Any) -> tuple[Tensor]:
    """Run a program on what an island, or another program, made."""
    program: Any = step.run
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value)
        what = "a float tensor between two parts of the network"
        raise UnsupportedShape(need(what, got, "Pass inputs like example_input."))
    value = value.detach().float()
    value = turn(value, FIRST) if step.turned[0] else value.contiguous()
    made = torch.from_numpy(program(value.numpy()))
    return (turn(made, LAST) if step.turned[1] else made,)


def _shapes(values: Sequence[Any]) -> Shapes:
    return tuple(tuple(v.shape) if isinstance(v, Tensor) else None for v in values)


def _listed(shapes: Shapes) -> str:
    return ", ".join(str(list(s)) for s in shapes if s is not None) or "none"


def _joined(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(name or "forward" for name in names))
    rest = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return ", ".join(distinct[:_SHOWN]) + rest
