# SPDX-License-Identifier: Apache-2.0
"""Architectures of published super-resolution networks, loaded from their own checkpoints."""
