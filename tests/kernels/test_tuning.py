# SPDX-License-Identifier: Apache-2.0
"""gpu.tuning: whatever sizes it tries, integers keep their bits; its file is read as written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ternary_ops.kernels._epilogue import Output

from ternary_ops.errors import FormatError, UnsupportedDevice
from ternary_ops.gpu.tuning import load_tuning, tune
from ternary_ops.kernels import _block_sizes, _target, block_sparse_conv2d, conv2d, linear
from ternary_ops.ops import blocks


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    _block_sizes.chosen.clear()
    yield
    _block_sizes.chosen.clear()


def _linear(m: int, dtype: torch.dtype = torch.uint8) -> Any:
    weights = torch.randint(-1, 2, (70, 1100), dtype=torch.int8)
    x = torch.randint(0, 256, (m, 1100)).to(dtype)
    packed = linear.prepack(weights, True, dtype != torch.uint8)
    quantized = (0.5, 7) if dtype == torch.uint8 else None
    output = Output(torch.float32 if quantized else dtype)
    return lambda: linear.run(x, packed, 70, True, torch.ones(70), None, quantized, output)


def _conv2d() -> Any:
    weights = torch.randint(-1, 2, (70, 3, 3, 40), dtype=torch.int8)
    x = torch.randint(0, 256, (1, 40, 9, 11), dtype=torch.uint8)
    packed = conv2d.prepack(weights, 1, True, False)
    rest = ((1, 1), (1, 1), (1, 1), 1, (0.5, 7), Output(torch.float32))
    return lambda: conv2d.run(x, packed, (70, 3, 3, 40), True, torch.ones(70), None, *rest)


def _block_sparse() -> Any:
    weight = torch.randint(-2, 3, (64, 32, 3, 3)).float()
    kept = blocks.from_dense(weight, (32, 16))
    x = torch.randint(-3, 4, (1, 32, 7, 9)).float()  # sums are exact in any order
    ones = ((1, 1), (1, 1), (1, 1), 1)
    return lambda: block_sparse_conv2d.run(x, *kept, 64, (3, 3), None, *ones)


CALLS = {
    "row": lambda: _linear(1),
    "rows": lambda: _linear(20),
    "many rows": lambda: _linear(70),
    "conv2d": _conv2d,
    "block-sparse": _block_sparse,
}


@pytest.mark.parametrize("name", CALLS)
def test_whatever_is_tried_makes_the_same(name: str) -> None:
    call = CALLS[name]()
    expected = call()
    tried = []

    def clock(run: Any) -> float:
        assert torch.equal(run(), expected)
        tried.append(dict(_block_sizes.chosen))
        return 1.0 / len(tried)  # the latest is the best: the search goes as far as it may

    (row,) = tune(call, clock=clock).rows
    assert len(tried) > 4
    assert row.after != row.before and row.after_ms < row.before_ms
    assert torch.equal(call(), expected)


def test_a_rule_that_is_best_stays() -> None:
    times = iter([1.0, *[1.5] * 100])
    (row,) = tune(_linear(20), clock=lambda run: next(times)).rows
    assert row.before == row.after


def test_a_gain_within_the_noise_is_none() -> None:
    times = iter([1.0, *[0.99] * 100])
    (row,) = tune(_linear(20), clock=lambda run: next(times)).rows
    assert row.before == row.after


def test_what_does_not_fit_is_passed_over() -> None:
    class OutOfResources(Exception):
        pass

    first = []

    def clock(run: Any) -> float:
        if first:
            raise OutOfResources
        first.append(run)
        return 1.0

    (row,) = tune(_linear(20), clock=clock).rows
    assert row.before == row.after


def columns_on_blackwell(triton: str, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Of blocks of integers of many sizes."""
    monkeypatch.setattr(_target.triton, "__version__", triton)
    where, rules = _target.Target("cuda", 100, 148), _block_sizes.rules
    found = {rules["linear_blocks"](m, 4096, 4096, 1, where).columns for m in (2, 40, 512, 9000)}
    for pixels in (49, 784, 6272, 25088, 100352):
        for rows in (64, 128, 512):
            found.add(rules["conv_blocks"](pixels, rows, 1, 256, 64, 1, where).columns)
    return found


def test_sums_of_four_planes_fit_in_tensor_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.8 keeps each apart, with 16 columns of weights: 576 of 512 were asked for."""
    assert all(4 * (columns + 16) <= 512 for columns in columns_on_blackwell("3.8.2", monkeypatch))
    assert max(columns_on_blackwell("3.9.0", monkeypatch)) == 128


def test_another_error_leaves_nothing_behind() -> None:
    first = []

    def clock(run: Any) -> float:
        if first:
            raise RuntimeError("device lost")
        first.append(run)
        return 1.0

    with pytest.raises(RuntimeError, match="lost"):
        tune(_linear(20), clock=clock)
    assert not _block_sizes.chosen


def test_the_file_answers_later(tmp_path: Path) -> None:
    file, call = tmp_path / "tuned.json", _linear(20)
    count = iter(range(1, 1000))
    (row,) = tune(call, cache=file, clock=lambda run: 1.0 / next(count)).rows
    _block_sizes.chosen.clear()
    assert load_tuning(file) == 1
    assert next(iter(_block_sizes.chosen.values())) == row.after
    _block_sizes.chosen.clear()

    def never(run: Any) -> float:
        raise AssertionError("measured again")

    assert tune(call, cache=file, clock=never).rows == ()
    tune(_linear(70), cache=file, clock=lambda run: 1.0)
    assert len(json.loads(file.read_text())["choices"]) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', '{"version": 2, "choices": []}',
     '{"version": 1, "choices": [{"rule": "measured", "target": ["cuda", 90, 1]}]}',
     '{"version": 1, "choices": [{"rule": "linear_blocks", "arguments": [1, 2, 256, 1], '
     '"target": ["cuda", 90, 132], "blocks": [1, 2]}]}',
     '{"version": 1, "choices": [{"rule": "linear_blocks", "arguments": [1, 2, 256, 1], '
     '"target": ["cuda", 90, 132], "blocks": [8, 1, 1, 0, 1]}]}'],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tuned.json"
    file.write_text(text)
    with pytest.raises(FormatError, match="Delete it"):
        load_tuning(file)
    with pytest.raises(FormatError):
        tune(_linear(20), cache=file, clock=lambda run: 1.0)
    assert file.read_text() == text and not _block_sizes.chosen


def test_without_a_gpu_there_is_no_clock() -> None:
    with pytest.raises(UnsupportedDevice, match="a GPU to tune on"):
        tune(_linear(20))
