# SPDX-License-Identifier: Apache-2.0
"""The compiler: a PyTorch network becomes a program, pass by pass."""

from ternary_ops.compiler.pipeline import compile  # noqa: A004

__all__ = ["compile"]
