# SPDX-License-Identifier: Apache-2.0
"""The GPUs that kernels are compiled for (Target) and scored on (Device).

A target is what the compiler must know; a device adds what the score must know about one product
of that target. Only NVIDIA devices: there is no time model for AMD.
"""

from __future__ import annotations

from dataclasses import dataclass

from ternary_ops.errors import BadConfig, need


@dataclass(frozen=True)
class Target:
    """One instruction set. Every figure is from the vendor's data sheet.

    name            sm_80 ... (NVIDIA), gfx942 ... (AMD)
    backend, arch   Triton's words for it: ("cuda", 80), ("hip", "gfx942")
    warp_size       lanes that run one instruction together
    shared_kb       KB of shared memory one block may use
    multiprocessors SMs (NVIDIA) or CUs (AMD) of its largest product, which persistent kernels ask
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_kb: int
    multiprocessors: int


@dataclass(frozen=True)
class Device:
    """One product and the figures its time is predicted from.

    Data sheet: sms, dram_bytes_per_s, registers, shared_kb, warps, blocks (all per SM), tensor_fma
    (fp16 multiply-adds per SM and clock, fp32 sums), int8_multiple and fp8_multiple (times that;
    0 where absent), fp32_lanes, half2_lanes and int32_lanes (per SM and clock); ghz of all but the
    H100 and the B200 is the data sheet's boost clock.
    Assumed: ghz of the H100 and B200 (sustained below boost), dram_share (what a good kernel
    reaches), latency_ns of one DRAM access, mma_sync_share (what warp-level matrix instructions
    reach where warpgroup or block-level ones exist), l2_bytes_per_s.
    Fitted: l2_bytes_per_s of the H100, raised from 5.7e12 because a published time contradicted it.
    """

    name: str
    target: Target
    sms: int
    ghz: float
    dram_bytes_per_s: float
    dram_share: float
    l2_bytes_per_s: float
    shared_kb: int
    warps: int
    blocks: int
    tensor_fma: int
    int8_multiple: int
    fp8_multiple: int
    latency_ns: int
    fp32_lanes: int
    half2_lanes: int
    mma_sync_share: float = 1.0
    int32_lanes: int = 64
    registers: int = 65536


TARGETS = {
    one.name: one
    for one in (
        Target("sm_80", "cuda", 80, 32, 163, 108),
        Target("sm_86", "cuda", 86, 32, 99, 84),
        Target("sm_89", "cuda", 89, 32, 99, 128),
        Target("sm_90", "cuda", 90, 32, 227, 132),
        Target("sm_100", "cuda", 100, 32, 227, 148),
        Target("sm_120", "cuda", 120, 32, 99, 170),
        Target("gfx942", "hip", "gfx942", 64, 64, 304),
        Target("gfx1100", "hip", "gfx1100", 32, 64, 96),
    )
}

DEVICES = {
    one.name: one
    for one in (
        Device(
            "A100",
            TARGETS["sm_80"],
            sms=108,
            ghz=1.41,
            dram_bytes_per_s=1.555e12,
            dram_share=0.88,
            l2_bytes_per_s=4.0e12,
            shared_kb=164,
            warps=64,
            blocks=32,
            tensor_fma=1024,
            int8_multiple=2,
            fp8_multiple=0,
            latency_ns=600,
            fp32_lanes=64,
            half2_lanes=128,
        ),
        Device(
            "H100",
            TARGETS["sm_90"],
            sms=132,
            ghz=1.70,
            dram_bytes_per_s=3.35e12,
            dram_share=0.90,
            l2_bytes_per_s=8.0e12,
            shared_kb=228,
            warps=64,
            blocks=32,
            tensor_fma=2048,
            int8_multiple=2,
            fp8_multiple=2,
            latency_ns=800,
            fp32_lanes=128,
            half2_lanes=128,
            mma_sync_share=0.62,
        ),
        Device(
            "L4",
            TARGETS["sm_89"],
            sms=58,
            ghz=2.04,
            dram_bytes_per_s=0.300e12,
            dram_share=0.90,
            l2_bytes_per_s=1.6e12,
            shared_kb=100,
            warps=48,
            blocks=24,
            tensor_fma=512,
            int8_multiple=2,
            fp8_multiple=2,
            latency_ns=650,
            fp32_lanes=128,
            half2_lanes=64,
        ),
        # GeForce runs fp16 and fp8 with fp32 sums at half rate, int8 at full rate.
        Device(
            "4090",
            TARGETS["sm_89"],
            sms=128,
            ghz=2.52,
            dram_bytes_per_s=1.008e12,
            dram_share=0.92,
            l2_bytes_per_s=4.5e12,
            shared_kb=100,
            warps=48,
            blocks=24,
            tensor_fma=256,
            int8_multiple=4,
            fp8_multiple=2,
            latency_ns=650,
            fp32_lanes=128,
            half2_lanes=64,
        ),
        Device(
            "B200",
            TARGETS["sm_100"],
            sms=148,
            ghz=1.85,
            dram_bytes_per_s=8.0e12,
            dram_share=0.90,
            l2_bytes_per_s=10e12,
            shared_kb=228,
            warps=64,
            blocks=32,
            tensor_fma=4096,
            int8_multiple=2,
            fp8_multiple=2,
            latency_ns=900,
            fp32_lanes=128,
            half2_lanes=128,
            mma_sync_share=0.62,
        ),
    )
}


def find_target(name: str) -> Target:
    """The target called `name`; BadConfig for an unknown one."""
    if name not in TARGETS:
        raise BadConfig(need("a GPU target", repr(name), f"Use one of {', '.join(TARGETS)}."))
    return TARGETS[name]


def find_device(name: str) -> Device:
    """The device called `name`; BadConfig for an unknown one."""
    if name not in DEVICES:
        raise BadConfig(need("a GPU", repr(name), f"Use one of {', '.join(DEVICES)}."))
    return DEVICES[name]
