# SPDX-License-Identifier: Apache-2.0
"""Extension of mkdocs.yml's reference: examples (`>>> ...`) of docstrings are shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*?(?=\n\n|\Z)", re.S | re.M)


class Examples(griffe.Extension):
    """Puts a fence around every paragraph that begins with >>>."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(lambda m: f"```python\n{m[0]}\n```", obj.docstring.value)
            obj.docstring.value = text
