# SPDX-License-Identifier: Apache-2.0
"""Data sets: folders of images, arrays, and a user's own Python code that yields batches."""
