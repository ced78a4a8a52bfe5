# SPDX-License-Identifier: Apache-2.0
"""Super-resolution from few pairs and many images without a partner, around a supervised GAN."""

from ternary_ops.sr.semi import hosts

__all__ = ["hosts"]
