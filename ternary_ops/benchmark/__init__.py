# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: networks, baselines of other libraries, agreement and timing."""
