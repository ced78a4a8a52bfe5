# SPDX-License-Identifier: Apache-2.0
"""Linear layers of integer weights and float inputs: the weights are read as they are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ternary_ops as tops
from ternary_ops import reference, runtime
from ternary_ops.layout import codes as layout
from ternary_ops.program.interpret import simulate

SIZES = [
    (1, 1),
    (3, 4),
    (5, 63),
    (7, 64),
    (9, 255),
    (4, 256),
    (6, 257),
    (2, 1024),
    (33, 1029),
    (16, 4100),
]


def weights(kind: str, n: int, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "ternary":
        return rng.integers(-1, 2, (n, k)).astype(np.int8)
    return rng.integers(-127, 128, (n, k)).astype(np.int8)


def stored(w: np.ndarray) -> torch.Tensor:
    if np.abs(w).max(initial=0) <= 1 and w.size > 2:
        return torch.from_numpy(layout.pack_codes(w))
    padded = np.zeros((len(w), 4 * layout.quads(w.shape[1])), np.int8)
    padded[:, : w.shape[1]] = w
    return torch.from_numpy(padded)


@pytest.mark.parametrize("kind", ["ternary", "int8"])
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("m", [1, 3, 9])
def test_every_instruction_set_is_within_the_bound(kind: str, n: int, k: int, m: int) -> None:
    rng = np.random.default_rng(m + n + k)
    w = weights(kind, n, k, n * k + m)
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    scale, bias = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    codes = stored(w)
    packed = tops.ops.prepack(codes, "dense", k, 1, True)
    exact = reference.linear(x, w, scale, bias)
    # k roundings of partial sums at most, each half a unit in the last place of what was added.
    bound = (k + 4) * 2.0**-24 * (np.abs(x) @ np.abs(w).T.astype(np.float64) * np.abs(scale))
    bound += 2.0**-23 * (np.abs(bias) + np.abs(exact))
    for isa in runtime.available_isas():
        with runtime.force_isa(isa):
            for threads in (1, 2, 3):
                with runtime.num_threads(threads):
                    y = tops.ops.linear(
                        *(torch.from_numpy(x), codes),
                        *(torch.from_numpy(scale), torch.from_numpy(bias)),
                        packed=packed,
                    ).numpy()
                assert (np.abs(y - exact) <= bound).all(), isa
            alone = [
                tops.ops.linear(
                    torch.from_numpy(x[i : i + 1]),
                    *(codes, torch.from_numpy(scale), torch.from_numpy(bias)),
                ).numpy()
                for i in range(m)
            ]
            np.testing.assert_array_equal(np.concatenate(alone), y)


def test_not_a_number_and_infinity_stay_where_they_are() -> None:
    w = weights("ternary", 6, 300, 1)
    x = torch.randn(2, 300)
    x[0, 5], x[1, 7] = float("nan"), float("inf")
    y = tops.ops.linear(x, stored(w), torch.ones(6)).numpy()
    assert np.isnan(y[0]).all()  # as in a dense product: 0 * NaN is NaN
    with np.errstate(invalid="ignore"):
        want = x.numpy() @ w.T.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))


def test_weights_keep_their_two_bits_in_memory() -> None:
    codes = stored(weights("ternary", 512, 4096, 2))
    packed = tops.ops.prepack(codes, "dense", 4096, 1, True)
    assert packed.numel() < 1.02 * codes.numel() + 4 * 512 + 256
    sparse = tops.ops.prepack(codes, "sparse", 4096, 1, True)
    x = torch.randn(2, 4096)
    a, b = (tops.ops.linear(x, codes, torch.ones(512), packed=p) for p in (packed, sparse))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)


def test_float16_is_summed_in_float32() -> None:
    w, x = weights("int8", 5, 700, 3), torch.randn(4, 700).half()
    y = tops.ops.linear(x, stored(w), torch.ones(5))
    assert y.dtype == torch.float16
    whole = tops.ops.linear(x.float(), stored(w), torch.ones(5))
    assert torch.equal(y, whole.half())


@pytest.mark.parametrize("kind", ["ternary", "int8"])
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_bfloat16_is_summed_in_float32(kind: str, n: int, k: int, form: str) -> None:
    rng = np.random.default_rng(n + k)
    w, m = weights(kind, n, k, n * k), 9
    x = torch.from_numpy(rng.standard_normal((m, k))).bfloat16()
    scale = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    codes, wide = stored(w), x.float().numpy()
    packed = tops.ops.prepack(codes, form, k, 1, True)
    exact = reference.linear(wide, w, scale.numpy())
    bound = (k + 4) * 2.0**-24 * (np.abs(wide) @ np.abs(w).T.astype(np.float64))
    # Rounded once more, to the eight bits of the result.
    bound = bound * np.abs(scale.numpy()) + np.abs(exact) * 2.0**-8
    for isa in runtime.available_isas():
        for threads in (1, 3):
            with runtime.force_isa(isa), runtime.num_threads(threads):
                y = tops.ops.linear(x, codes, scale, packed=packed)
                alone = [tops.ops.linear(row[None], codes, scale, packed=packed) for row in x]
            assert y.dtype == torch.bfloat16
            assert (np.abs(y.float().numpy() - exact) <= bound).all(), isa
            assert torch.equal(torch.cat(alone), y), isa


def test_bfloat16_keeps_nan_and_infinity() -> None:
    w, x = weights("ternary", 6, 300, 1), torch.randn(5, 300).bfloat16()
    x[0, 5], x[1, 7], x[4, 299] = float("nan"), float("inf"), float("-inf")
    y = tops.ops.linear(x, stored(w), torch.ones(6)).float().numpy()
    with np.errstate(invalid="ignore"):
        want = x.float().numpy() @ w.T.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(want))


def test_rows_of_base_three_are_refused() -> None:
    from ternary_ops._native import core
    from ternary_ops.errors import BadWeights

    codes = stored(weights("ternary", 8, 400, 4))
    packed = torch.from_numpy(
        core().prepack_linear("base_three", "ternary", codes.data_ptr(), 8, 400)
    )
    with pytest.raises(BadWeights, match="float_x"):
        tops.ops.linear(torch.randn(1, 400), codes, torch.ones(8), packed=packed)


def weight_only(model: torch.nn.Module, config: tops.TernaryConfig) -> torch.nn.Module:
    tops.quantize_(model, tops.plan(model, rules={"*": config}))
    return model.eval()


class Head(torch.nn.Module):
    """A linear layer whose output meets a function, a residual and the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(70, 90)
        self.second = torch.nn.Linear(90, 90)
        self.last = torch.nn.Linear(90, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, 11] of x [N, 70]."""
        y = torch.relu(self.first(x))
        return self.last(torch.relu(y + self.second(y)))


@pytest.mark.parametrize("kind", ["ternary", "int8"])
def test_programs_read_the_rows_as_they_are(kind: str) -> None:
    torch.manual_seed(3)
    config = tops.TernaryConfig(kind, activations="float32")
    model = weight_only(Head(), config)
    assert all(isinstance(m, tops.nn.TernaryLinear) for m in list(model.modules())[1:])
    x = torch.randn(37, 70)
    program = tops.compile(model, x[:1])
    exact = simulate(program.graph, x.numpy())[-1]
    for isa in runtime.available_isas():
        with runtime.force_isa(isa), runtime.num_threads(2):
            y = program(x.numpy())
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
        with runtime.force_isa(isa), runtime.num_threads(1):
            alone = np.concatenate([program(x[i : i + 1].numpy()) for i in range(37)])
        np.testing.assert_array_equal(y, alone)


def test_a_program_reports_two_bits_a_weight() -> None:
    config = tops.TernaryConfig(activations="float32")
    model = weight_only(torch.nn.Sequential(torch.nn.Linear(2048, 2048)), config)
    program = tops.compile(model, torch.randn(1, 2048))
    x = np.random.default_rng(0).standard_normal((1, 2048)).astype(np.float32)
    program(x)
    rows = program.profile(x)
    linear = next(row for row in rows if row["op"] == "linear")
    assert (linear["kind"], linear["bits"], linear["integer"]) == ("ternary", 2, False)
