# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton launchers for a GPU that is not there, and runs nothing.

`record` gives Triton a driver that answers like the target's: `kernel[grid](tensors, ...)` then
compiles as it would on that GPU, with the same specialisation of its arguments, and the launch is
written down. Tensors stay in ordinary memory and outputs stay unwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternary_ops.errors import BadConfig, need
from ternary_ops.gpu._triton import triton_module
from ternary_ops.gpu.binary import Binary
from ternary_ops.gpu.devices import Target, find_target


@dataclass(frozen=True)
class Launch:
    """One `kernel[grid](...)`.

    arguments  numbers and strings it was called with, by name; tensors are left out
    """

    name: str
    grid: tuple[int, int, int]
    num_warps: int
    binary: Binary
    arguments: Mapping[str, int | float | str]


Cost = Callable[[list[Launch]], float]


@contextmanager
def record(target: str | Target, cost: Cost | None = None) -> Iterator[list[Launch]]:
    """Compile what is launched inside for `target`; yields the list that the launches join.

    @triton.autotune tries its configurations with `cost` of the launches of one try, the lower the
    better, in place of a clock; without `cost` it takes the first one that fits. What was tuned
    outside stays as it was. A kernel that needs too much shared memory raises Triton's
    OutOfResources, as on the GPU.
    """
    knobs = triton_module("triton.knobs").runtime
    if knobs.interpret:
        do = "Start Python without TRITON_INTERPRET: an interpreted kernel has no machine code."
        raise BadConfig(need("compiled kernels to record", "TRITON_INTERPRET=1", do))
    active = triton_module("triton.runtime.driver").driver
    driver = _RecordingDriver(find_target(target) if isinstance(target, str) else target, cost)
    former = active._active
    tuner = triton_module("triton.runtime.autotuner").Autotuner
    tune = tuner.run
    active.set_active(driver)
    knobs.kernel_load_start_hook.add(driver.before_load)
    tuner.run = lambda self, *args, **kwargs: driver.tuned(tune, self, *args, **kwargs)
    try:
        yield driver.launches
    finally:
        tuner.run = tune
        knobs.kernel_load_start_hook.remove(driver.before_load)
        active._active = former


class _RecordingDriver:
    """Triton driver (triton.backends.driver.DriverBase) that answers without a GPU.

    The target itself serves as the device's index. Triton keeps compiled kernels and the limit of
    shared memory by that index, so kernels of several targets, and of a real GPU, stay apart.
    """

    def __init__(self, target: Target, cost: Cost | None) -> None:
        self.target = target
        self.cost = cost
        self.launches: list[Launch] = []
        self.utils = self
        self._choices: dict[Any, dict[Any, Any]] = {}
        self._loading: Mapping[str, str] = {}
        self._metadata: Any = None

    def is_active(self) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> Any:
        target = self.target
        kind = triton_module("triton.backends.compiler").GPUTarget
        return kind(target.backend, target.arch, target.warp_size)

    def get_current_device(self) -> Target:
        return self.target

    def get_current_stream(self, device: Target | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_device_properties(self, device: Target) -> dict[str, int]:
        return {
            "max_shared_mem": self.target.shared_kb * 1024,
            "multiprocessor_count": self.target.multiprocessors,
            "warpSize": self.target.warp_size,
            "max_num_regs": 65536,
        }

    def get_benchmarker(self) -> Callable[..., Any]:
        return self._price

    def before_load(
        self, module: Any, function: Any, name: str, files: Mapping[str, str], key: str
    ) -> None:
        """Triton's hook before load_binary, the only one that tells where the PTX is."""
        self._loading = files

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Called before `before_load`; a kernel's launcher may outlive this recording."""
        self._metadata = metadata
        active = triton_module("triton.runtime.driver").driver
        names = source.fn.arg_names

        def launch(x: int, y: int, z: int, stream: int, function: Binary, *rest: Any) -> None:
            # Between the function and the kernel's arguments: packed metadata and three hooks.
            arguments = {
                name: value
                for name, value in zip(names, rest[4:], strict=True)
                if isinstance(value, (int, float, str))
            }
            active.active.launches.append(
                Launch(function.name, (x, y, z), function.num_warps, function, arguments)
            )

        return launch

    def load_binary(
        self, name: str, image: bytes, shared: int, device: Target
    ) -> tuple[Binary, Binary, int, int, int]:
        """Module, function, registers, spills and the most threads of a block.

        The binary serves as the module too: Triton loads a kernel without one at every launch.
        """
        on_amd = self.target.backend == "hip"
        text, code = ("amdgcn", "hsaco") if on_amd else ("ptx", "cubin")
        path = next(Path(path) for path in self._loading.values() if path.endswith(f".{text}"))
        binary = Binary({text: path.read_text(), code: image}, self._metadata, self.target)
        return binary, binary, binary.registers, binary.stack_bytes // 4, 1024

    def unload_module(self, module: Binary) -> None:
        pass

    def tuned(self, tune: Callable[..., Any], tuner: Any, *args: Any, **kwargs: Any) -> Any:
        """Run an Autotuner with this recording's choices and price, in memory only."""
        mine = {
            "cache": self._choices.setdefault(tuner, {}),
            "do_bench": self._price,
            "cache_results": False,
        }
        former = {name: value for name, value in vars(tuner).items() if name in mine}
        vars(tuner).update(mine)
        try:
            return tune(tuner, *args, **kwargs)
        finally:
            for name in mine.keys() - former.keys():
                del vars(tuner)[name]
            vars(tuner).update(former)

    def _price(self, call: Callable[[], None], quantiles: Any = None, **ignored: Any) -> Any:
        """Stand-in for Triton's benchmarker; its trial launches are removed from the list."""
        before = len(self.launches)
        call()
        tried = self.launches[before:]
        del self.launches[before:]
        price = self.cost(tried) if self.cost else 0.0
        return [price] * len(quantiles) if quantiles else price
