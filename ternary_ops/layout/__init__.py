# SPDX-License-Identifier: Apache-2.0
"""Layouts: 2-bit codes of ternary weights and padded int8 arrays. NumPy only."""
