# SPDX-License-Identifier: Apache-2.0
"""Compile GPU kernels on a machine without a GPU, and read and score their machine code.

`record.record` compiles unmodified Triton launchers for a named target and runs nothing,
`machine_code.Binary` reads the result, `score.predict` ranks kernels by it:

    with record("sm_90") as launches:
        launch(x, weights, y)                 # tensors in ordinary memory
    launches[0].binary.registers, launches[0].binary.tensor_core

`tuning.tune` chooses sizes of blocks by the clock of a real GPU, and keeps them in a file.

Nothing here imports Triton before `record` or a Binary needs it.
"""
