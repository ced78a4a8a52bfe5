# SPDX-License-Identifier: Apache-2.0
"""From a float network to trainable quantized layers, their ranges, and packed layers."""
