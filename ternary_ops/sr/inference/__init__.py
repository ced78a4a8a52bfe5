# SPDX-License-Identifier: Apache-2.0
"""Upscaling images with a program: files, tiles, colors. Never torch."""
