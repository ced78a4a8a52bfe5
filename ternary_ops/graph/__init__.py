# SPDX-License-Identifier: Apache-2.0
"""Networks as graphs: tracing, folding BatchNorm, which channels belong together."""
