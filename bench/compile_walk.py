# SPDX-License-Identifier: Apache-2.0
"""How one convolution walks through `tops.compile`: calls between the package's files, counted.

    python bench/compile_walk.py [--csv compile_walk.csv] [--list]

The network is a fixed residual net, quantized and calibrated; the layer is the second convolution
of its first block, which has a BatchNorm, an addition and a ReLU behind it. compile runs twice, and
sys.setprofile watches the second time, when every module has been imported.

A call is *about* the first of its arguments that belongs to a node: an fx node, the module or the
name of a layer, or an object of the package with an attribute (a chain of at most three) that does;
lists, tuples and dicts are not searched, so whoever holds all layers is about none. A call about
the layer counts, and so does every call below it. What the layer does itself does not: methods and
properties of its module, and what PyTorch computes when it runs the module.

entry: a counted call of a function in another file than the one where the walk stands, which is the
file of the innermost counted call that has not returned, or else of the last one.
return: an entry into a file that was entered before; entries = files + returns.

The second row counts all calls of the same compile, whatever they are about.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from _measure import RESULTS, command_line, commit, read_rows, write_csv
from torch import Tensor, fx, nn

import ternary_ops as tops

PACKAGE = str(Path(tops.__file__).resolve().parent) + "/"
LAYER = "blocks.0.second"
DEPTH = 3  # attributes between an argument and the layer


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + x)


class Network(nn.Module):
    """A stem, two blocks, a global average and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


def quantized() -> tuple[nn.Module, Tensor]:
    """The network, ready to be compiled, and an example."""
    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(2, 3, 16, 16)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5, pattern="1x4")))
    for layer in model.modules():
        if isinstance(layer, tops.nn.TernaryLayer):
            layer.phase = "frozen"
    tops.calibrate(model, [x])
    for name, module in model.named_modules():
        module.walked = name  # an attribute that copies keep
    return model.eval(), x


def owner_of(value: Any, depth: int = DEPTH) -> str | None:
    """The node that an argument belongs to: a layer's path, another node's name, None for none."""
    if isinstance(value, nn.Module):
        return vars(value).get("walked") or None  # "" is the network
    if isinstance(value, fx.Node):
        return str(value.target) if value.op == "call_module" else value.name
    if isinstance(value, str):
        return value if value == LAYER else None
    if depth == 0 or not type(value).__module__.startswith("ternary_ops"):
        return None
    slots = (getattr(value, name, None) for name in getattr(type(value), "__slots__", ()))
    fields = (getattr(value, name) for name in getattr(type(value), "_fields", ()))
    return first_owner((*getattr(value, "__dict__", {}).values(), *slots, *fields), depth - 1)


def first_owner(values: Iterable[Any], depth: int = DEPTH) -> str | None:
    """The node of the first value that belongs to one."""
    return next(filter(None, (owner_of(value, depth) for value in values)), None)


def arguments(frame: FrameType) -> Sequence[Any]:
    """What a function was called with."""
    code, local = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    return [local[name] for name in code.co_varnames[:count] if name in local]


def _is_layers_own(frame: FrameType) -> bool:
    """Whether a call is one of a method of the layer's module."""
    code = frame.f_code
    if code.co_argcount == 0 or code.co_varnames[0] != "self":
        return False
    owner = frame.f_locals.get("self")
    return isinstance(owner, nn.Module) and owner_of(owner) == LAYER


@dataclass
class Walk:
    """Entries in order: how deep in counted calls, file, function; `everything`: of all nodes."""

    everything: bool = False
    entries: list[tuple[int, str, str]] = field(default_factory=list)
    _stays: list[str] = field(default_factory=list)  # files of counted calls that have not returned
    _last: str = ""
    _inside: FrameType | None = None  # the call that began what the layer does itself
    _calls: list[bool] = field(default_factory=list)  # of the package: which of them count
    _generators: set[FrameType] = field(default_factory=set)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """What sys.setprofile calls."""
        if event == "return" and frame is self._inside:
            self._inside = None
        elif event in ("call", "return") and self._inside is None:
            code = frame.f_code
            if event == "call" and _is_layers_own(frame):
                self._inside = frame
            elif code.co_filename.startswith(PACKAGE) and code.co_name != "<module>":
                if event == "call":
                    self._enter(frame, code.co_filename.removeprefix(PACKAGE))
                elif self._calls.pop():
                    self._stays.pop()

    def _enter(self, frame: FrameType, file: str) -> None:
        counts = bool(self._stays) or self.everything or first_owner(arguments(frame)) == LAYER
        self._calls.append(counts)
        if not counts:
            return
        resumed = frame in self._generators
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            self._generators.add(frame)
        if not resumed and file != (self._stays[-1] if self._stays else self._last):
            self.entries.append((len(self._stays), file, frame.f_code.co_name))
        self._stays.append(file)
        self._last = self._stays[0]

    def row(self) -> dict[str, Any]:
        """Its figures."""
        entries, files = len(self.entries), len({file for _, file, _ in self.entries})
        what = "all calls" if self.everything else LAYER
        return {"what": what, "entries": entries, "files": files, "returns": entries - files}


def walk(everything: bool) -> Walk:
    """Watch one compile of the network."""
    found = Walk(everything)
    model, x = quantized()
    tops.compile(model, x)
    sys.setprofile(found)
    try:
        tops.compile(model, x)
    finally:
        sys.setprofile(None)
    return found


def main() -> int:
    """Print both rows; write them where asked."""
    parser = command_line(__doc__)
    parser.add_argument("--csv", help="file under bench/results that the rows join")
    parser.add_argument("--list", action="store_true", help="the entries of the layer, in order")
    options = parser.parse_args()
    walks = [walk(False), walk(True)]
    for found in walks:
        print(*(f"{key}: {value}" for key, value in found.row().items()), sep="  ")
    if options.list:
        for depth, file, function in walks[0].entries:
            print(f"{'  ' * depth}{file}: {function}")
    if options.csv:
        rows = [{"commit": commit(), **found.row()} for found in walks]
        print("written:", write_csv(options.csv, [*read_rows(RESULTS / options.csv), *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
