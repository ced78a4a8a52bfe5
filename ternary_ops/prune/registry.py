# SPDX-License-Identifier: Apache-2.0
"""Registry: strategies by name. Criteria, growth rules, schedules and allocations each have one."""

from __future__ import annotations

from typing import TypeVar

from ternary_ops.errors import BadConfig, need

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict of strategies of one kind, to which a name can be added once."""

    def __init__(self, kind: str, other: str) -> None:
        """kind: such as "a criterion"; other: how one gets a strategy that is not here."""
        super().__init__()
        self.kind, self.other = kind, other

    def add(self, name: str, strategy: T) -> None:
        """Register under a new name; BadConfig for a name that is taken or not an identifier."""
        if not isinstance(name, str) or not name.isidentifier():
            raise BadConfig(
                need(f"an identifier as the name of {self.kind}", repr(name), "Rename.")
            )
        if name in self:
            raise BadConfig(need(f"a free name for {self.kind}", repr(name), "Choose another."))
        self[name] = strategy

    def find(self, name: str) -> T:
        """The strategy of that name; BadConfig lists the names there are."""
        if not isinstance(name, str) or name not in self:
            do = f"Pick one, or {self.other}."
            raise BadConfig(need(f"{self.kind} as one of {', '.join(self)}", repr(name), do))
        return self[name]
