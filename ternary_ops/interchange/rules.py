# SPDX-License-Identifier: Apache-2.0
"""Admission rules of the ONNX operators; everything else is refused by name, in one place.

A reader is called only for a node that its rule admits: a known version of the operator, known
attributes with values it can express, an input rank it handles, and no output that it does not
make. A file written for a later operator set is therefore refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from torch import fx

from ternary_ops.interchange.loader import Loader
from ternary_ops.interchange.onnx_package import Unsupported

Made = fx.Node | NDArray[Any] | None
Attributes = dict[str, Any]
Read = Callable[[Loader, Any, Attributes], Made]

ANY = None  # every value of an attribute


@dataclass(frozen=True)
class Rule:
    """One operator: its reader, and what that takes.

    versions    first and last opset version in which the operator was (re)defined that is read
    attributes  name -> values that are taken (ANY: the reader decides); others are refused
    ranks       numbers of axes of the first input, where that is computed; none: any
    codes       "read" where the first input may be 8-bit codes; "moved" where the result is codes
                of the same scale and zero point then
    spare       True where further outputs are harmless as long as nothing reads them
    """

    read: Read
    versions: tuple[int, int]
    attributes: Mapping[str, tuple[Any, ...] | None] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    codes: str = ""
    spare: bool = False


def admit(loader: Loader, node: Any, rule: Rule) -> Attributes:
    """The attributes of a node that its rule takes, strings decoded; Unsupported otherwise."""
    first, last = rule.versions
    version = _version(loader, node)
    if not first <= version <= last:
        raise Unsupported(f"a definition of opset {first} to {last}", f"that of opset {version}")
    given = {a.name: _plain(loader.onnx.helper.get_attribute_value(a)) for a in node.attribute}
    for name, value in given.items():
        taken = rule.attributes.get(name, ())
        if taken is not ANY and value not in taken:
            known = " or ".join(f"{name} = {v!r}" for v in taken) or f"no attribute {name}"
            raise Unsupported(known, f"{name} = {value!r}")
    for name in node.output[1:]:
        if name and (not rule.spare or loader.readers[name]):
            raise Unsupported("one output", f"a second, {name!r}")
    for number, name in enumerate(node.input):
        if name in loader.codes_of and not (rule.codes and _same_codes(loader, node)):
            raise Unsupported(f"input {number} as float32", f"8-bit codes {name!r}")
    if rule.ranks and node.input and node.input[0] in loader.values:
        if (rank := loader.rank(node.input[0])) not in rule.ranks:
            ranks = " or ".join(map(str, rule.ranks))
            raise Unsupported(f"an input of {ranks} axes", f"{rank} in {node.input[0]!r}")
    return given


def _same_codes(loader: Loader, node: Any) -> bool:
    """True if the first input is codes, and all inputs that are share its scale and zero point."""
    found = [loader.codes_of[name] for name in node.input if name in loader.codes_of]
    forms = {(codes.scale, codes.zero, codes.dtype) for codes in found}
    return node.input[0] in loader.codes_of and len(forms) == 1


def _version(loader: Loader, node: Any) -> int:
    """Opset version of an operator's definition that the file uses."""
    if loader.opset is None:
        raise Unsupported("a file that names its opset", "none")
    schema = loader.onnx.defs.get_schema(node.op_type, loader.opset, "")
    return int(schema.since_version)


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
