# SPDX-License-Identifier: Apache-2.0
"""Kernels compiled for GPUs that are not there: what their machine code says, and the score."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("an interpreted kernel has no machine code", allow_module_level=True)

import gpu_kernels  # noqa: E402  (it imports Triton)

from ternary_ops.errors import BadConfig, MissingExtra, UnsupportedDevice  # noqa: E402
from ternary_ops.gpu import perf_model  # noqa: E402
from ternary_ops.gpu._triton import triton_module  # noqa: E402
from ternary_ops.gpu.binary import Binary  # noqa: E402
from ternary_ops.gpu.capture import Launch, record  # noqa: E402
from ternary_ops.gpu.devices import Target, find_device, find_target  # noqa: E402
from ternary_ops.gpu.disassembly import Instruction, find_loops, parse_sass  # noqa: E402

active = triton.runtime.driver


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def halves(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def copied(target: str | Target) -> Launch:
    with record(target) as launches:
        gpu_kernels.copy_kernel[(4,)](halves(16384), halves(16384), SIZE=4096)
    (launch,) = launches
    return launch


def multiplied(target: str | Target, tile: Sequence[int] = (64, 64, 32), **options: int) -> Launch:
    x, w, y = halves(256, 512), halves(512, 256), halves(256, 256)
    bm, bn, bk = tile
    grid = (256 // bm, 256 // bn)
    with record(target) as launches:
        gpu_kernels.matmul_kernel[grid](x, w, y, 256, 512, BM=bm, BN=bn, BK=bk, **options)
    (launch,) = launches
    return launch


def repeated(target: str, size: int) -> Binary:
    numbers = torch.zeros(4 * size)
    with record(target) as launches:
        gpu_kernels.repeat_kernel[(4,)](numbers, numbers, 77, SIZE=size)
    (launch,) = launches
    return launch.binary


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942", "gfx1100"])
def test_copy_loads_sixteen_bytes(target: str) -> None:
    launch = copied(target)
    assert (launch.name, launch.grid, launch.num_warps) == ("copy_kernel", (4, 1, 1), 4)
    assert launch.arguments == {"SIZE": 4096}
    binary = launch.binary
    assert binary.widest_global_load == 16
    assert binary.tensor_core is None and not binary.loops and not binary.trapped
    assert binary.stack_bytes == binary.spill_bytes == binary.shared_bytes == 0
    assert 0 < binary.registers < 64
    assert len(binary.instructions) == sum(binary.histogram().values()) < 40


@pytest.mark.parametrize(
    "target, expected", [("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("gfx942", "MFMA")]
)
def test_matmul_uses_the_tensor_cores(target: str, expected: str) -> None:
    launch = multiplied(target)
    binary = launch.binary
    assert launch.arguments == {"N": 256, "K": 512, "BM": 64, "BN": 64, "BK": 32}
    assert binary.tensor_core == expected
    assert binary.spill_bytes == 0 and binary.shared_bytes > 0 and not binary.trapped
    (loop,) = binary.loops
    inside = [one for one in binary.histogram(loop) if expected in one.upper()]
    assert inside, binary.histogram(loop)


# From Triton 3.8 on, LLVM repeats the body of a short loop, and there are two loops.
@pytest.mark.parametrize("target, lanes, size", [("sm_90", 32, 4096), ("gfx942", 64, 65536)])
def test_thread_instructions_grow_by_the_loop_body(target: str, lanes: int, size: int) -> None:
    binary = repeated(target, size)
    (loop,) = binary.loops
    once, thousand = binary.thread_instructions([1]), binary.thread_instructions([1000])
    assert once == len(binary.instructions) * lanes * 4
    assert thousand - once == 999 * len(loop) * lanes * 4
    # The exponents by 4 warps: each warp's share stands in the body once.
    body = binary.histogram(loop)
    assert body["MUFU" if target == "sm_90" else "v_exp_f32"] == size // (4 * lanes)
    with pytest.raises(BadConfig, match="each of the 1 loops"):
        binary.thread_instructions([])


@pytest.mark.parametrize(
    "target, options", [("sm_80", {"maxnreg": 64}), ("gfx942", {"waves_per_eu": 8})]
)
def test_spills_are_seen(target: str, options: dict[str, int]) -> None:
    binary = multiplied(target, (128, 128, 32), **options).binary
    assert binary.spill_bytes > 0 and binary.stack_bytes > 0


def test_targets_share_a_process_and_the_driver_comes_back() -> None:
    former, run = active._active, triton.runtime.autotuner.Autotuner.run
    first, other, again = copied("sm_80"), copied("sm_90"), copied("sm_80")
    assert [one.binary.target.name for one in (first, other, again)] == ["sm_80", "sm_90", "sm_80"]
    assert "LDC" in other.binary.histogram() and "LDC" not in first.binary.histogram()
    assert again.binary is first.binary
    with pytest.raises(ZeroDivisionError), record("sm_80"):
        raise ZeroDivisionError
    assert active._active is former
    assert triton.runtime.autotuner.Autotuner.run is run
    assert not triton.knobs.runtime.kernel_load_start_hook.calls


def test_too_much_shared_memory_is_refused_as_on_the_gpu() -> None:
    tile = (128, 128, 64)
    with pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
        multiplied("sm_89", tile, num_stages=5)
    assert multiplied("sm_90", tile, num_stages=5).binary.shared_bytes > 99 * 1024


def test_autotune_takes_the_cheapest_and_forgets_it() -> None:
    def launched(cost: object = None) -> list[Launch]:
        with record("sm_80", cost) as launches:
            gpu_kernels.tuned_copy_kernel[lambda meta: (16384 // meta["SIZE"],)](x, x)
        return launches

    x = halves(16384)
    tuner = gpu_kernels.tuned_copy_kernel
    (largest,) = launched(lambda tried: math.prod(tried[0].grid))
    (smallest,) = launched(lambda tried: -math.prod(tried[0].grid))
    (first,) = launched()
    sizes = [one.arguments["SIZE"] for one in (largest, smallest, first)]
    assert sizes == [4096, 512, 1024]
    assert tuner.cache == {} and "do_bench" not in vars(tuner)


def test_user_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadConfig, match="sm_80, sm_86"), record("sm_42"):
        pass
    with pytest.raises(BadConfig, match="H100"):
        find_device("H1000")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        with pytest.raises(MissingExtra, match=r"ternary-ops\[gpu\]"):
            triton_module()
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        with pytest.raises(BadConfig, match="TRITON_INTERPRET"), record("sm_80"):
            pass


def test_importing_does_not_load_triton() -> None:
    names = "machine_code, record, score, targets"
    code = f"import sys; from ternary_ops.gpu import {names}; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# A guard, an outer loop 0x10..0x60 around 0x20..0x40, and polling code behind the end that
# jumps back into the outer loop without being a loop of its own.
SASS = """
    Function : nest
    /*0000*/ @P0 EXIT ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0010*/ MOV R1, R2 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0020*/ FADD R1, R1, R2 ; /* 0x0000000000000000 */ /* 0x000fc80000000000 */
    /*0030*/ FMUL R1, R1, R2 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0040*/ @!P1 BRA 0x20 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0050*/ BRA.U !UP0, 0x80 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0060*/ @P2 BRA 0x10 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0070*/ EXIT ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0080*/ NANOSLEEP R1 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*0090*/ @P3 BRA 0x80 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*00a0*/ BRA 0x60 ; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*00b0*/ BRA 0xb0; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
    /*00c0*/ NOP; /* 0x0000000000000000 */ /* 0x000fe20000000000 */
"""


def test_loops_of_nested_code_with_a_detour_behind_the_end() -> None:
    listing = parse_sass(SASS, "nest")
    assert [one.address for one in listing] == list(range(0, 0xB0, 0x10))
    assert [one.stall for one in listing[:3]] == [1, 1, 4]
    assert listing[0].predicate == "P0" and listing[0].falls_through
    spans = [
        (listing[loop.first].address, listing[loop.last].address) for loop in find_loops(listing)
    ]
    assert spans == [(0x20, 0x40), (0x10, 0x60)]


def launch_of(opcodes: Sequence[str], blocks: int, registers: int = 32) -> Launch:
    """A launch of straight code for the A100 that no compiler made."""
    listing = [Instruction(16 * index, opcode) for index, opcode in enumerate(opcodes)]
    binary = SimpleNamespace(
        target=find_target("sm_80"),
        registers=registers,
        shared_bytes=0,
        tensor_core=None,
        trapped=False,
        instructions=listing,
        times=lambda trips: [1.0] * len(listing),
    )
    return Launch("made_up", (blocks, 1, 1), 4, binary, {})


@pytest.mark.parametrize(
    "registers, shared_bytes, num_warps, expected",
    [
        (32, 0, 4, 16),  # 64 warps
        (128, 0, 4, 4),  # 65536 / (128 * 32 * 4)
        (129, 0, 4, 3),  # 129 * 32 rounded up to 4352 a warp
        (32, 48 * 1024, 4, 3),  # 164 KB / (48 + 1) KB
        (16, 0, 1, 32),  # blocks
    ],
)
def test_occupancy(registers: int, shared_bytes: int, num_warps: int, expected: int) -> None:
    found = perf_model.occupancy(find_device("A100"), registers, shared_bytes, num_warps)
    assert found == expected


def test_occupancy_refuses_what_does_not_fit() -> None:
    with pytest.raises(BadConfig, match="fits on one SM"):
        perf_model.occupancy(find_device("A100"), 255, 0, 16)


def test_prediction_of_known_code() -> None:
    a100 = find_device("A100")
    # 100 FFMA at 2 cycles each, 16 warps in each quarter of an SM, one wave of 16 blocks an SM.
    code = ["FFMA"] * 100
    one_wave = 100 * 2 * 16 / 1.41e3 / 0.66
    whole = perf_model.predict([(launch_of(code, 108 * 16), [])], a100, 0, 0)
    assert whole.sm_us == pytest.approx(one_wave)
    assert whole.us == pytest.approx(one_wave + 2 + 2 * 0.6)
    assert (whole.bound, whole.occupancy, whole.waves) == ("float", 16, 1.0)
    # Half a wave more costs half as much more; two launches pay their overhead twice.
    more = perf_model.predict([(launch_of(code, 108 * 24), [])] * 2, a100, 0, 0)
    assert more.us == pytest.approx(2 * (1.5 * one_wave + 3.2))
    # 512 fp16 multiply-adds a cycle and quarter: 2048 / 256 cycles of the tensor pipe.
    matrix = perf_model.predict([(launch_of(["HMMA.16816.F32"] * 10, 108 * 16), [])], a100, 0, 0)
    assert matrix.sm_us == pytest.approx(10 * 8 * 16 / 1.41e3 / 0.66)
    assert matrix.bound == "tensor"


def test_prediction_of_memory() -> None:
    a100 = find_device("A100")
    launch = launch_of(["LDG.E.128"] * 8, 108 * 16)
    # 108 * 16 * 4 warps with 8 loads of 16 bytes a lane: far above 1.555e12 * 600e-9 under way.
    found = perf_model.predict([(launch, [])], a100, 1e9, 1e9)
    assert found.bound == "dram"
    assert found.dram_us == pytest.approx(1e9 / (1.555e12 * 0.88) * 1e6)
    assert found.l2_us == pytest.approx(250)
    assert perf_model.predict([(launch, [])], a100, 1e8, 1e9).bound == "l2"
    # One block has 4 * 32 * 16 * 8 bytes under way: so much of the rate it can ask for.
    lonely = perf_model.predict([(launch_of(["LDG.E.128"] * 8, 1), [])], a100, 1e9, 0)
    assert lonely.dram_us == pytest.approx(1e9 / 0.88 / (4 * 32 * 16 * 8) * 600e-3)
    with pytest.raises(BadConfig, match="Record it for sm_90"):
        perf_model.predict([(launch, [])], find_device("H100"), 0, 0)


def test_a_trap_is_no_kernel() -> None:
    metadata = SimpleNamespace(name="given_up", num_warps=4, shared=0)
    binary = Binary({}, metadata, find_target("sm_80"))
    binary.instructions = [Instruction(0, "MOV"), Instruction(16, "BPT.TRAP")]
    assert binary.trapped
    with pytest.raises(UnsupportedDevice, match="given_up, got a trap"):
        launch = Launch("given_up", (1, 1, 1), 4, binary, {})
        perf_model.predict([(launch, [])], find_device("A100"), 0, 0)
    checked = Binary({}, metadata, find_target("sm_80"))
    checked.instructions = [*binary.instructions, *(Instruction(0, "FADD") for _ in range(100))]
    assert not checked.trapped


def test_matrix_instruction_of_unknown_shape_is_refused() -> None:
    launch = launch_of(["HMMA.161616.F32"], 1)
    with pytest.raises(UnsupportedDevice, match="16816"):
        perf_model.predict([(launch, [])], find_device("A100"), 0, 0)


def test_roofline() -> None:
    h100 = find_device("H100")
    macs = 512 * 4096 * 4096
    int8 = perf_model.roofline(h100, macs, 4096 * 4096 / 4, "int8")
    assert (int8.us, int8.bound) == (pytest.approx(macs / (132 * 1.7e3 * 4096)), "tensor")
    bf16 = perf_model.roofline(h100, macs, 0, "bf16")
    assert bf16.us == pytest.approx(2 * int8.us)
    thin = perf_model.roofline(h100, 4096 * 4096, 4096 * 4096 / 4, "int8")
    assert (thin.us, thin.bound) == (pytest.approx(4096 * 4096 / 4 / (3.35e6 * 0.9)), "dram")
    with pytest.raises(BadConfig, match="fp16, bf16, int8"):
        perf_model.roofline(find_device("A100"), 1, 1, "fp8")


def test_published_matmul_is_predicted_as_when_the_model_was_fitted() -> None:
    """Triton's bf16 product 16384 x 1280 x 8192 on an H100: published 562 us, fitted +5 %."""
    m, n, k = 16384, 1280, 8192
    some = torch.zeros(64, dtype=torch.bfloat16)
    with record("sm_90") as launches:
        gpu_kernels.matmul_kernel[(m // 128, n // 256)](
            some, some, some, n, k, BM=128, BN=256, BK=64, num_warps=8, num_stages=3
        )
    dram, l2 = 2 * (m * k + n * k + m * n), 2 * (m * k * (n // 256) + n * k * (m // 128))
    found = perf_model.predict([(launches[0], [k // 64])], find_device("H100"), dram, l2)
    assert found.us == pytest.approx(562 * 1.05, rel=0.03)
    assert (found.bound, found.occupancy) == ("tensor", 1)


def test_block_level_instructions_need_their_size() -> None:
    launch = multiplied("sm_100", (128, 64, 32))
    assert str(launch.binary.tensor_core).startswith("UTC")
    b200 = find_device("B200")
    trips = [16] * len(launch.binary.loops)
    with pytest.raises(BadConfig, match="multiply-adds"):
        perf_model.predict([(launch, trips)], b200, 0, 0)
    found = perf_model.predict([(launch, trips)], b200, 0, 0, macs=1e12)
    assert found.sm_us == pytest.approx(1e12 / (148 * 1.85e3 * 4096) / 0.66)
