# SPDX-License-Identifier: Apache-2.0
"""Whole experiments: train, compress, check and measure. What `ternary-ops compress` runs."""
