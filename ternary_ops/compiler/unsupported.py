# SPDX-License-Identifier: Apache-2.0
"""Why a traced call has no program form."""

from __future__ import annotations


class Unsupported(Exception):
    """Why a node has no program op; reading collects them all."""


class Consequence(Unsupported):
    """The node reads one that is unsupported, which is reason enough to name that one only."""
