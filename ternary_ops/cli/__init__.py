# SPDX-License-Identifier: Apache-2.0
"""The command line, `ternary-ops` = `python -m ternary_ops`."""
