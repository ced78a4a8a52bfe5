# SPDX-License-Identifier: Apache-2.0
"""Training of super-resolution networks: patches, losses, metrics."""
