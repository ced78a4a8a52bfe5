# SPDX-License-Identifier: Apache-2.0
"""A row of the table: how one torch operator becomes a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ternary_ops.compiler.call import Call, Made
from ternary_ops.compiler.step import Step


class Row(NamedTuple):
    """make: from a call to its value, or to a step that makes it as torch has it. text: the
    operator for people, in the list of what is supported: the name it has in `graph.torch_ops` if
    None, left out if empty.
    """

    make: Callable[[Call], Made | Step | None]
    text: str | None = None
