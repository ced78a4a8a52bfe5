# SPDX-License-Identifier: Apache-2.0
"""Write a saved program as an ONNX file that stock ONNX Runtime runs, without torch.

--form exact (default) gives the program's bits in plain operators; --form qdq has QuantizeLinear
and DequantizeLinear around float operators, which other engines fuse to 8-bit kernels of their own.
Needs the package onnx: pip install 'ternary-ops[onnx]'.

example: ternary-ops export digits-ternary.safetensors digits.onnx --form qdq
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ternary_ops.errors import BadConfig, need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two files and the form."""
    parser.add_argument("file", metavar="FILE", help="a program that `compress` or .save wrote")
    parser.add_argument("output", metavar="OUT.onnx", help="the file to write")
    parser.add_argument("--form", default="exact", metavar="FORM", help="exact (default) or qdq")


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print its size; 0."""
    from ternary_ops import runtime
    from ternary_ops.interchange import save_onnx

    output = Path(arguments.output)
    if output.suffix != ".onnx":
        raise BadConfig(need("an output that ends in .onnx", output.name, "Rename it."))
    save_onnx(runtime.load(arguments.file), output, arguments.form)
    size = output.stat().st_size
    if arguments.json:
        print(json.dumps({"output": str(output), "form": arguments.form, "bytes": size}, indent=2))
    else:
        print(f"wrote {output}, form {arguments.form}, {size:,} bytes")
    return 0
