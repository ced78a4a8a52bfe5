# SPDX-License-Identifier: Apache-2.0
"""Training: checkpoints, augmentation, distillation, learning rates, several processes."""
