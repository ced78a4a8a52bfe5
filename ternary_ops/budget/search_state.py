# SPDX-License-Identifier: Apache-2.0
"""What a search has measured so far, in a file that it goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternary_ops._atomic import replace_file
from ternary_ops.errors import FormatError, need

_DELETE = "Delete it to begin anew, or pass another file."


class SearchState:
    """Values by name, written as JSON after each; about: what they hold for.

    Raises FormatError for a file that is damaged or holds for something else.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any]) -> None:
        self._file, self._about = file, dict(about)
        self._values: dict[str, Any] = {}
        if file is None or not file.exists():
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            said, values = dict(found["about"]), dict(found["values"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(need(f"a search in {file}", repr(error), _DELETE)) from error
        for name, value in self._about.items():
            if said.get(name) != value:
                what = f"in {file} a search of the same {name}, {value}"
                raise FormatError(need(what, said.get(name), _DELETE))
        self._values = values

    def known(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of that name; made, and written, where there is none. Plain values."""
        if name not in self._values:
            # As JSON gives them back, so that a search that went on does what one in a piece does.
            self._values[name] = json.loads(json.dumps(make()))
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"about": self._about, "values": self._values})
                replace_file(self._file, lambda target: target.write_text(text, encoding="utf-8"))
        return self._values[name]


def digest(tensors: Iterable[Tensor]) -> str:
    """A name of these values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
