# SPDX-License-Identifier: Apache-2.0
"""The package of Triton kernels, `ternary_ops.kernels.<op>`; its files lie in the folder kernels/.

That folder, at the top of the repository, has no __init__.py on purpose: with one, it would shadow
the PyPI package `kernels` for anyone whose working directory is a checkout. A module with a
__path__ works from a wheel, an editable install and a checkout.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
_in_checkout = (_here.parent / "setup.py").is_file()
__path__ = [str((_here.parent if _in_checkout else _here) / "kernels")]
