# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, repaired and hardened: what the tests of kernels run under, without a GPU.

Upstream computes bfloat16 on its raw bits, knows no inline PTX, and reads wherever a pointer leads.
After install():

    bfloat16, fp8   operations, casts and reductions go through float32, rounded half to even
    tl.dot          int8 exact; float32 operands rounded to tf32 unless input_precision="ieee"
    inline PTX      a NumPy twin for every text, see inline_ptx.py
    memory          OutOfBounds, Race; lanes a load masks off without `other` hold junk
    traffic()       bytes that kernels loaded and stored
    debug           tl.device_assert fires, and + - * of integers below 64 bits must not overflow
                    but where told so: tl.add(a, b, sanitize_overflow=False)
    autotune        takes the first configuration
    errors          a launch raises the kernel's own exception, not InterpreterError(its text)

It cannot show layouts, shared memory, barriers, contraction to fma, the order of float32 sums,
reads of what another program writes, nor a Python `assert` on a block (use tl.device_assert).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from inline_ptx import run_twin
from triton.runtime import interpreter as upstream
from triton.runtime.driver import driver

Array = np.ndarray
Function = Callable[..., Any]
Builder, TensorHandle = upstream.InterpreterBuilder, upstream.TensorHandle

_FP8 = {
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5b16": torch.float8_e5m2fnuz,
}


class OutOfBounds(IndexError):
    """A kernel touched memory outside every tensor it was given."""


class Race(AssertionError):
    """Two programs, or two lanes of one store, wrote the same element."""


@dataclasses.dataclass
class Traffic:
    """Bytes of unmasked lanes; an atomic counts as a load and as a store."""

    loaded: int = 0
    stored: int = 0


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Counts the bytes of all launches inside."""
    _counters.append(Traffic())
    try:
        yield _counters[-1]
    finally:
        _counters.pop()


_counters: list[Traffic] = []
# Equal times: of what is to be tuned, the first configuration wins.
_NO_DRIVER = SimpleNamespace(
    get_benchmarker=lambda: lambda call, quantiles, **kwargs: [1.0] * len(quantiles)
)
_replacements: list[tuple[type, str, Function]] = []


def _replaces(owner: type, *names: str) -> Callable[[Function], Function]:
    """install() puts the function, given the original after self, in place of the methods."""

    def register(function: Function) -> Function:
        _replacements.extend((owner, name, function) for name in names)
        return function

    return register


def install() -> None:
    """Patches Triton for the rest of the process; a second call does nothing."""
    # Triton's own @jit functions show what the variable was when they were defined.
    if not isinstance(tl.standard.zeros, upstream.InterpretedFunction):
        raise RuntimeError("Triton was imported without TRITON_INTERPRET=1: start Python with it")
    if driver._active is _NO_DRIVER:
        return
    for owner, name, function in _replacements:
        setattr(owner, name, functools.partialmethod(function, getattr(owner, name)))
    upstream._patch_lang_tensor = functools.partial(_patch_tensor, upstream._patch_lang_tensor)
    Builder.get_bf16 = lambda self, value: _from_float32(np.float32([value]), tl.bfloat16)
    builder = upstream.interpreter_builder
    builder.options = dataclasses.replace(builder.options, debug=True, sanitize_overflow=True)
    driver.set_active(_NO_DRIVER)


def _patch_tensor(original: Function, tensor: type, scope: Any) -> None:
    # Triton 3.6 takes int() of an array with one axis, which NumPy 2.4 refuses.
    original(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _bfloat16_bits(values: Array) -> Array:
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _as_float32(handle: TensorHandle) -> Array:
    if _is_bfloat16(handle):
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    if fp8 := _FP8.get(handle.dtype.scalar.name):
        return torch.from_numpy(np.array(handle.data)).view(fp8).float().numpy()
    return handle.data.astype(np.float32, copy=False)


def _from_float32(values: Array, dtype: tl.dtype) -> TensorHandle:
    if dtype == tl.bfloat16:
        return TensorHandle(_bfloat16_bits(values), dtype)
    if not (fp8 := _FP8.get(dtype.name)):
        return TensorHandle(values.astype(upstream._get_np_dtype(dtype)), dtype)
    # As the instruction does it (cvt.rn.satfinite); torch would make infinity of it in e5m2.
    largest = torch.finfo(fp8).max
    kept = torch.from_numpy(np.array(values)).clamp(-largest, largest)
    return TensorHandle(kept.to(fp8).view(torch.uint8).numpy(), dtype)


@_replaces(Builder, "create_maxnumf", "create_minnumf")
def _number(self: Builder, original: Function, a: Any, b: Any) -> TensorHandle:
    """Of a NaN and a number the number, as on the device; upstream returns NaN."""
    a, b = (
        TensorHandle(np.where(np.isnan(x.data), y.data, x.data), x.dtype)
        for x, y in ((a, b), (b, a))
    )
    return original(self, a, b)


@_replaces(
    Builder,
    *(f"create_f{name}" for name in "add sub mul div rem ma".split()),
    *(f"create_fcmp{order}{test}" for order in "OU" for test in "LT GT LE GE EQ NE".split()),
    *(f"create_{name}" for name in "precise_divf clampf minimumf minnumf maximumf maxnumf".split()),
    *(f"create_{name}" for name in "exp exp2 log log2 sin cos erf floor ceil".split()),
    *(f"create_{name}" for name in "sqrt precise_sqrt rsqrt".split()),
)
def _operation(self: Builder, original: Function, *operands: Any) -> TensorHandle:
    if not any(map(_is_bfloat16, operands)):
        return original(self, *operands)
    wide = [TensorHandle(_as_float32(x), tl.float32) if _is_bfloat16(x) else x for x in operands]
    result = original(self, *wide)
    if result.data.dtype == np.bool_:
        return TensorHandle(result.data, tl.int1)
    return _from_float32(result.data, tl.bfloat16)


@_replaces(Builder, "cast_impl")
def _cast(self: Builder, original: Function, x: TensorHandle, to: tl.dtype) -> TensorHandle:
    if {x.dtype.scalar.name, to.scalar.name} & {"bf16", *_FP8}:
        return _from_float32(_as_float32(x), to.scalar)
    return original(self, x, to)


@_replaces(Builder, "create_fp_to_fp")
def _fp_to_fp(self: Builder, original: Function, x: Any, to: Any, rounding: Any) -> TensorHandle:
    truncate = rounding == upstream._ir.ROUNDING_MODE.RTZ
    return original(self, x, to, rounding) if truncate else self.cast_impl(x, to)


@_replaces(upstream.ReduceOps, "sum", "min_max")
@_replaces(upstream.ScanOps, "cumsum", "cumprod")
def _reduction(self: Any, original: Function, x: Any, *args: Any, **kwargs: Any) -> Any:
    first = x[0] if isinstance(x, tuple) else x
    if first.dtype.scalar != tl.bfloat16:
        return original(self, x, *args, **kwargs)
    wide = self.to_tensor(_as_float32(first.handle), tl.float32)
    results = original(self, wide, *args, **kwargs)

    def narrow(result: Any) -> Any:
        if result.dtype.scalar != tl.float32:  # the index of argmin, argmax
            return result
        bits = _bfloat16_bits(result.handle.data)
        return self.to_tensor(bits if result.type.is_block() else bits[0], tl.bfloat16)

    return [*map(narrow, results)] if isinstance(results, (tuple, list)) else narrow(results)


@_replaces(Builder, "create_dot")
def _dot(self: Builder, _: Function, *operands: Any, **kwargs: Any) -> TensorHandle:
    a, b, sums, precision = operands[:4]
    tf32 = precision == upstream._ir.INPUT_PRECISION.TF32
    product = np.matmul(_dot_operand(a, tf32), _dot_operand(b, tf32))
    if sums.data.dtype.kind == "i":
        product = product.astype(np.int64)  # float64 to int32 is undefined beyond its range
    return TensorHandle(product.astype(sums.data.dtype) + sums.data, sums.dtype.scalar)


def _dot_operand(handle: TensorHandle, tf32: bool) -> Array:
    dtype = handle.dtype.scalar
    if dtype.is_int() or dtype == tl.float64:
        return handle.data.astype(np.float64)  # sums below 2**53 are exact, and BLAS is fast
    values = _as_float32(handle)
    if dtype != tl.float32 or not tf32:
        return values
    rounded = (values.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


@_replaces(Builder, "create_inline_asm")
def _inline_asm(self: Builder, _: Function, text: str, *rest: Any) -> SimpleNamespace:
    asm, (_constraints, values, types) = " ".join(text.split()), rest[:3]
    inputs = [np.ascontiguousarray(value.data) for value in values]
    handles = [
        TensorHandle(result.view(upstream._get_np_dtype(dtype.scalar)), dtype.scalar)
        for result, dtype in zip(run_twin(asm, inputs), types, strict=True)
    ]
    return SimpleNamespace(get_result=handles.__getitem__)


class _Memory:
    """The storages a launch may touch, and which program wrote which of their bytes."""

    def __init__(self, arguments: Iterable[object]) -> None:
        self._starts, ends = np.array(sorted({(0, 0), *_spans(arguments)}), np.uint64).T
        self._ends = np.maximum.accumulate(ends)  # storages may lie in one another
        lengths = self._ends - self._starts
        self._first_owner = np.cumsum(lengths) - lengths
        self._owners = np.zeros(int(lengths.sum()), np.int32)  # 1 + the program's number

    def check(self, addresses: Array, size: int, action: str) -> None:
        ends = self._ends[np.searchsorted(self._starts, addresses, side="right") - 1]
        outside = int(((addresses >= ends) | (ends - addresses < size)).sum())
        if outside:
            program = upstream.interpreter_builder.grid_idx
            where = f"{outside} of {addresses.size} lanes, program {program}"
            raise OutOfBounds(f"{action} of {size} bytes outside every tensor argument: {where}")

    def claim(self, addresses: Array, size: int) -> None:
        """Addresses that check() let pass become the current program's."""
        program = upstream.interpreter_builder.grid_idx
        if np.unique(addresses).size < addresses.size:
            raise Race(f"two lanes of one store write the same element, program {program}")
        number = 1 + np.ravel_multi_index(program, upstream.interpreter_builder.grid_dim)
        span = np.searchsorted(self._starts, addresses, side="right") - 1
        first = addresses - self._starts[span] + self._first_owner[span]
        written = first[:, None] + np.arange(size, dtype=np.uint64)
        if not np.isin(self._owners[written], (0, number)).all():
            raise Race(f"program {program} writes elements that another program wrote")
        self._owners[written] = number


def _spans(values: Iterable[object]) -> Iterator[tuple[int, int]]:
    for value in values:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        elif isinstance(value, (tuple, list)):
            yield from _spans(value)
        elif hasattr(value, "base"):  # TensorDescriptor, reinterpreted tensors
            yield from _spans([value.base])


_memory = _Memory([])


def _touch(action: str, pointers: TensorHandle, mask: Array | bool) -> tuple[Array, int]:
    """Addresses of the lanes in use, checked, and the bytes of an element."""
    addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape)]
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    _memory.check(addresses, size, action)
    for counter in _counters:
        counter.loaded += addresses.size * size * (action != "store")
        counter.stored += addresses.size * size * (action != "load")
    return addresses, size


def _junk(handle: TensorHandle) -> Any:
    """NaN, or for integers bytes of 0x5A, which no caller expects."""
    dtype = handle.dtype.scalar
    if dtype.is_floating():
        return _from_float32(np.float32([np.nan]), dtype).data[0]
    return handle.data.dtype.type(int.from_bytes(b"\x5a" * handle.data.itemsize, "little"))


@_replaces(Builder, "create_masked_load")
def _load(self: Builder, original: Function, pointers: Any, *rest: Any, **kwargs: Any) -> Any:
    mask, other = rest[:2]
    # A handle or, of block pointers and descriptors, an array: a view of either has the values.
    used = np.asarray(mask.data, bool)
    _touch("load", pointers, used)
    result = original(self, pointers, *rest, **kwargs)
    if other is None:
        result.data = np.where(used, result.data, _junk(result))
    return result


@_replaces(Builder, "create_masked_store")
def _store(self: Builder, original: Function, pointers: Any, *rest: Any, **kwargs: Any) -> Any:
    _memory.claim(*_touch("store", pointers, np.asarray(rest[1].data, bool)))
    return original(self, pointers, *rest, **kwargs)


@_replaces(Builder, "create_atomic_rmw")
def _atomic_rmw(self: Builder, original: Function, op: Any, pointers: Any, *rest: Any) -> Any:
    _touch("atomic", pointers, rest[1].data)
    return original(self, op, pointers, *rest)


@_replaces(Builder, "create_atomic_cas")
def _atomic_cas(self: Builder, original: Function, pointers: Any, *rest: Any) -> Any:
    _touch("atomic", pointers, True)
    return original(self, pointers, *rest)


@_replaces(Builder, "create_assert")
def _device_assert(self: Builder, _: Function, condition: Any, message: str, *args: Any) -> None:
    if not np.all(condition.data):
        raise AssertionError(f"device_assert: {message}, program {self.grid_idx}")


@_replaces(upstream.GridExecutor, "_init_args_hst")
def _arguments(self: Any, original: Function, args: Any, kwargs: Any) -> Any:
    global _memory
    host_args, host_kwargs = original(self, args, kwargs)
    _memory = _Memory([*host_args, *host_kwargs.values()])
    return host_args, host_kwargs


@_replaces(upstream.GridExecutor, "__call__")
def _launch(self: Any, original: Function, *args: Any, **kwargs: Any) -> None:
    try:
        original(self, *args, **kwargs)
    except upstream.InterpreterError as error:
        cause: Any = error
        while isinstance(cause, upstream.InterpreterError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None
