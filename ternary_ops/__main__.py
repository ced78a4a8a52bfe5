# SPDX-License-Identifier: Apache-2.0
"""`python -m ternary_ops` is the command `ternary-ops`."""

from ternary_ops.cli import process

if __name__ == "__main__":
    process()
