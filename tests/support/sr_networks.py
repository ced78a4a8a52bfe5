# SPDX-License-Identifier: Apache-2.0
"""Super-resolution networks small enough for tests, by family."""

from ternary_ops import sr

SMALL = {
    "FMEN": lambda: sr.FMEN(2, 6, 5, 4, 2, [1, 0, 1]),
    "IMDN": lambda: sr.IMDN(3, 8, 2),
    "EFDN": lambda: sr.EFDN(2, 8),
    "RLFN": lambda: sr.RLFN(2, 10, 12, 2, 4),
}
