# SPDX-License-Identifier: Apache-2.0
"""The compiler: a PyTorch network becomes a program, pass by pass.

>>> program = tops.compile(model, x)
>>> y = program(x.numpy())
>>> bool(np.abs(y - model(x).detach().numpy()).max() < 1e-3)
True
"""

from ternary_ops.compiler.pipeline import compile  # noqa: A004

__all__ = ["compile"]
