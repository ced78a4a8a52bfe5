# SPDX-License-Identifier: Apache-2.0
"""Load a saved program and run it: NumPy and the native core, never torch.

    program = runtime.load("net.safetensors")
    logits = program(images)                      # float32 [N, C, H, W] -> float32
    with runtime.num_threads(1), runtime.force_isa("avx2"):
        program(images)                           # the same bits

Results depend on neither the thread count nor the batch an image travels in; integer nodes are the
same bits on every instruction set.
"""

from ternary_ops.program.cpu import available_isas, force_isa, info, isa, num_threads
from ternary_ops.program.program import Program, load

__all__ = [
    "Program",
    "available_isas",
    "force_isa",
    "info",
    "isa",
    "load",
    "num_threads",
]
