# SPDX-License-Identifier: Apache-2.0
"""Training of super-resolution networks: patches, losses, metrics."""

from typing import Any

from ternary_ops import _moved


def __getattr__(name: str) -> Any:
    return _moved.attribute(__name__, name)
