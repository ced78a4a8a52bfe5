# SPDX-License-Identifier: Apache-2.0
"""Parts of a model without a program form, and the one message that lists them, grouped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ternary_ops.compiler.call import Call
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.nodes import is_ours

_MOST_GROUPS = 16  # in a message of at most 25 lines


@dataclass(frozen=True)
class Problem:
    """One call without a program form.

    operator: for people, "floor()" or "Mixer". place: the path of the module that is called or in
    whose forward the call stands. line: file and line of the model's code, "" where unknown.
    """

    operator: str
    place: str
    line: str
    reason: str

    @property
    def where(self) -> str:
        """Module path and line of code."""
        return f"{self.place} ({self.line})" if self.line else self.place

    def __str__(self) -> str:
        """The one problem as a line."""
        return f"{self.operator} in {self.where}: {self.reason}"


@dataclass(frozen=True)
class Group:
    """Problems of one operator for one reason, in the order of the model; the first stands for all,
    whose reasons differ in numbers alone.
    """

    problems: tuple[Problem, ...]

    @property
    def first(self) -> Problem:
        """The first of them."""
        return self.problems[0]

    def __str__(self) -> str:
        """Operator, count, reason and first place in one line."""
        count = len(self.problems)
        times, place = (f" ({count} times)", "first in") if count > 1 else ("", "in")
        return f"{self.first.operator}{times}: {self.first.reason}; {place} {self.first.where}"


def problem_of(call: Call, reason: object) -> Problem:
    """The problem of a traced call."""
    inside = [str(path) for path, _ in call.node.meta.get("nn_module_stack", {}).values()]
    line = str(call.node.meta.get("line", ""))
    if call.module is not None:
        return Problem(kind_in_words(call.module), call.name, line, str(reason))
    place = (inside[-1] if inside else "") or "forward"
    return Problem(f"{called(call)}()", place, line, str(reason))


def called(call: Call) -> str:
    """The name of the function or method that a node calls."""
    target = call.node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "?")


def kind_in_words(module: nn.Module) -> str:
    """The class of a module; of a subclass of one of torch.nn's, that one too."""
    kind = type(module)
    if is_ours(module):
        return kind.__name__
    parent = next(k for k in kind.__mro__ if k.__module__.startswith("torch.nn."))
    own = parent in (kind, nn.Module)
    return kind.__name__ if own else f"{kind.__name__}, a subclass of {parent.__name__}"


def groups(problems: Sequence[Problem]) -> list[Group]:
    """The problems by operator and reason, in the order of the first of each: causes stand before
    what follows from them.
    """
    found: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        key = problem.operator, re.sub(r"\d+", "0", problem.reason)
        found.setdefault(key, []).append(problem)
    return [Group(tuple(parts)) for parts in found.values()]


class Refused(UnsupportedModel):
    """Parts of the model have no program form; `groups` has them all."""

    groups: tuple[Group, ...] = ()


def refusal(problems: Sequence[Problem], supported: str) -> Refused:
    """The error that lists them, at most `_MOST_GROUPS` lines and one for the rest."""
    found = groups(problems)
    lines = [str(group) for group in found[:_MOST_GROUPS]]
    if rest := found[_MOST_GROUPS:]:
        more = ", ".join(dict.fromkeys(group.first.operator for group in rest))
        count = sum(len(group.problems) for group in rest)
        lines.append(f"and {count} for {len(rest)} more reasons: {more}")
    error = Refused(
        need(
            "a program form of every part of the model",
            f"{len(problems)} without:\n  " + "\n  ".join(lines),
            "Write them with what is supported, or run them in PyTorch: islands=True.\n"
            f"  Supported: {supported}.",
        )
    )
    error.groups = tuple(found)
    return error
