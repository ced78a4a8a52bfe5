# SPDX-License-Identifier: Apache-2.0
"""The one place the version is written; pyproject.toml, setup.py and the native module read it."""

__version__ = "0.1.0"
