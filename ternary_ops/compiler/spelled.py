# SPDX-License-Identifier: Apache-2.0
"""Functions of one number that a network spells out: x * relu6(x + 3) / 6 is hardswish.

Steps that together make one value of one other are evaluated on a grid of numbers and compared with
the functions that programs know, so any order, sign or split of the factors is recognized.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ternary_ops.compiler.step import Step, rewire
from ternary_ops.program.weight import Array
from ternary_ops.reference.activations import FUNCTIONS

_LONGEST = 16  # steps; GELU by tanh has eight
# Constants are written with seven digits or more.
_CLOSE = 1e-6
_ENDS = np.geomspace(12, 1e30, 60)
_GRID = np.concatenate([-_ENDS, np.linspace(-12, 12, 481), _ENDS])


def spelled_function(step: Step) -> Sequence[Step]:
    """Steps that compute a function without parameters become that function."""
    region: set[Step] = set()
    found: Step | None = step
    while found is not None and len(region) < _LONGEST:
        region.add(found)
        sources = {x for inner in region for x in inner.inputs} - region
        if len(sources) == 1 and len(region) > 1:
            (x,) = sources
            with np.errstate(all="ignore"):  # an infinity or NaN is no value of these functions
                name = _known(_value(step, {x: _GRID}))
            if name is not None:
                step.op, step.clamp = "activation", (None, None)
                step.attrs = {"fn": name, "params": ()}
                rewire(step, x)
                return ()
        found = next((x for x in sources if _is_inner(x, region)), None)
        if len(region) == 1 and not _is_of_one_number(step):
            return ()
    return ()


def _is_inner(step: Step, region: set[Step]) -> bool:
    """True for a step whose value counts in the region alone."""
    return _is_of_one_number(step) and region.issuperset(step.users)


def _is_of_one_number(step: Step) -> bool:
    """True for what treats each number alone, and is in no layer's chain."""
    return step.chain is None and step.op in ("activation", "clamp", "add", "mul")


def _value(step: Step, known: dict[Step, Array]) -> Array:
    """What a step makes of the values of its sources."""
    if step in known:
        return known[step]
    operands = [_value(x, known) for x in step.inputs]
    if step.op == "activation":
        made: Array = FUNCTIONS[step.attrs["fn"]].value(operands[0], *step.attrs["params"])
    else:
        made = operands[0]
        for other in operands[1:]:
            made = made + other if step.op == "add" else made * other
        lo, hi = step.clamp
        made = made if lo is None else np.maximum(made, lo)
        made = made if hi is None else np.minimum(made, hi)
    known[step] = made
    return made


def _known(values: Array) -> str | None:
    """The function that has these values on the grid."""
    for name, exact in _functions().items():
        if np.all(np.abs(values - exact) <= _CLOSE * (1 + np.abs(exact))):
            return name
    return None


@lru_cache(maxsize=1)
def _functions() -> dict[str, Array]:
    with np.errstate(all="ignore"):
        return {
            name: function.value(_GRID)
            for name, function in FUNCTIONS.items()
            if function.parameters == 0
        }
