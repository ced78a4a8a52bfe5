# SPDX-License-Identifier: Apache-2.0
"""ERA5 near-surface temperature over Britain, four times coarser: data, generator, baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _cifar import folder
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops import sr
from ternary_ops.sr import hosts

SCALE = 4
TRAIN, TEST = 500, 150  # hours: the first ones and the last ones; those between are not used
_SMALL = (8, 12)
_REACH = 2  # cells to each side that the linear part of the generator sees
_WAVES = 16
Array = NDArray[np.float64]
HOUR0 = np.datetime64("2019-03-01T00", "h")


@dataclass(frozen=True)
class Data:
    """Every hour: large [T, 32, 48] and small [T, 8, 12] fields in kelvin, and its date."""

    large: Array
    small: Array
    dates: NDArray[np.datetime64]

    @property
    def test(self) -> NDArray[np.int64]:
        """Numbers of the hours held out."""
        return np.arange(len(self.large) - TEST, len(self.large))


def load() -> Data:
    """The fields; the small ones are block means. Needs h5py."""
    import h5py

    with h5py.File(folder() / "climate" / "era5_uk_t2m_2019-03.nc") as file:
        fields = file["t2m"][:, :32, :48].astype(np.float64)
    small = fields.reshape(-1, _SMALL[0], SCALE, _SMALL[1], SCALE).mean((2, 4))
    return Data(fields, small, HOUR0 + np.arange(len(fields)).astype("timedelta64[h]"))


@dataclass(frozen=True)
class Split:
    """Hours of each kind among the first 500: pairs to learn from and to stop by, small fields
    alone, large fields alone.
    """

    pairs: NDArray[np.int64]
    stop: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.int64]:
        """All hours whose pair is known: baselines learn from these."""
        return np.sort(np.concatenate([self.pairs, self.stop]))


def split(data: Data, count: int, seed: int) -> Split:
    """`count` random hours as pairs, of which every fifth day stops the training; the rest by
    whole days, in turn, to small and to large fields alone.
    """
    order = np.random.default_rng((seed, count)).permutation(TRAIN)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    days = data.dates.astype("datetime64[D]").astype(int)
    stops = np.unique(days[chosen])[2::5]
    stop = np.isin(days[chosen], stops)
    high = days[rest] % 2 == seed % 2
    return Split(chosen[~stop], chosen[stop], rest[~high], rest[high])


class FieldNet(sr.SRNetwork):
    """A generator for one grid: x [N, 1, 8, 12], normalized -> [N, 1, 32, 48].

    The field of x, repeated, plus a correction without block mean, so that x is conserved: for
    every pixel a linear function of how its cell differs from those around it (weights of its
    own, as a regression at every pixel would have), and a small convolutional part.
    """

    family = "FieldNet"
    input_range = 1.0

    def __init__(self, width: int = 16) -> None:
        super().__init__(SCALE, 1)
        h, w = _SMALL
        cells, seen = h * w, (2 * _REACH + 1) ** 2
        self.linear = nn.Parameter(torch.zeros(cells, SCALE * SCALE, seen))
        self.bias = nn.Parameter(torch.zeros(SCALE * SCALE, h, w))
        self.place = nn.Parameter(torch.zeros(4, h, w))
        self.body = nn.Sequential(
            nn.Conv2d(5, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, SCALE * SCALE, 1),
        )
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """The large field."""
        n, (h, w) = len(x), _SMALL
        around = F.unfold(F.pad(x, (_REACH,) * 4, mode="replicate"), 2 * _REACH + 1)
        differences = around - x.flatten(2)  # [N, 25, cells]
        y = torch.einsum("nkc,cok->noc", differences, self.linear).view(n, -1, h, w)
        y = y + self.bias + self.body(torch.cat([x, self.place.expand(n, -1, -1, -1)], 1))
        y = F.pixel_shuffle(y - y.mean(1, keepdim=True), SCALE)
        return y + F.interpolate(x, scale_factor=float(SCALE), mode="nearest")


def host(weights: hosts.HostWeights, seed: int) -> hosts.Host:
    """FieldNet in SRGAN, against a small PatchGAN."""
    torch.manual_seed(seed)
    return hosts.SRGAN(FieldNet(), hosts.PatchGAN(1, 8, 2), weights)


def bilinear(data: Data, hours: NDArray[np.int64]) -> Array:
    """Interpolated, then shifted to the block means."""
    x = torch.from_numpy(data.small[hours])[:, None]
    y = F.interpolate(x, scale_factor=float(SCALE), mode="bilinear", align_corners=False)
    return sr.conserve(y, x, SCALE)[:, 0].numpy()


def _centered(data: Data, hours: NDArray[np.int64], at: NDArray[np.int64]) -> tuple[Array, ...]:
    x, y = (part.reshape(len(part), -1) for part in (data.small, data.large))
    mx, my = x[hours].mean(0), y[hours].mean(0)
    return x[hours] - mx, y[hours] - my, x[at] - mx, my


def ridge(data: Data, hours: NDArray[np.int64], at: NDArray[np.int64], penalty: float) -> Array:
    """Linear regression of all pixels on all cells."""
    x, y, new, my = _centered(data, hours, at)
    kernel = x @ x.T + penalty * np.eye(len(x))
    return (new @ x.T @ np.linalg.solve(kernel, y) + my).reshape(-1, *data.large.shape[1:])


def kernel_ridge(
    data: Data, hours: NDArray[np.int64], at: NDArray[np.int64], penalty: float, gamma: float
) -> Array:
    """The same with a Gaussian kernel; gamma relative to the mean squared distance."""
    x, y, new, my = _centered(data, hours, at)

    def squares(a: Array, b: Array) -> Array:
        return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T

    scale = gamma / squares(x, x).mean()
    kernel = np.exp(-scale * squares(x, x)) + penalty * np.eye(len(x))
    made = np.exp(-scale * squares(new, x)) @ np.linalg.solve(kernel, y)
    return (made + my).reshape(-1, *data.large.shape[1:])


_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
_KERNELS = [(p, g) for p in (1e-4, 1e-3, 1e-2, 1e-1) for g in (0.01, 0.03, 0.1, 0.3)]


def baselines(data: Data, parts: Split) -> dict[str, Array]:
    """Fields of the test hours; penalties and widths are chosen by the hours that stop the host,
    then all pairs are used.
    """
    truth = data.large[parts.stop]

    def best(fit: Any, choices: Any) -> Any:
        return min(choices, key=lambda c: rmse(fit(data, parts.pairs, parts.stop, *c), truth))

    linear = best(ridge, [(p,) for p in _PENALTIES])
    gaussian = best(kernel_ridge, _KERNELS)
    return {
        "bilinear": bilinear(data, data.test),
        "ridge": ridge(data, parts.known, data.test, *linear),
        "kernel ridge": kernel_ridge(data, parts.known, data.test, *gaussian),
    }


def rmse(made: Array, truth: Array) -> float:
    """Over all pixels and hours, kelvin."""
    return float(np.sqrt(np.mean((made - truth) ** 2)))


def spectrum(fields: Array) -> Array:
    """Mean log power by radial wave number."""
    fields = fields - fields.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(fields)) ** 2
    rows, columns = (np.fft.fftfreq(side) for side in fields.shape[1:])
    ring = np.rint(2 * _WAVES * np.hypot(rows[:, None], columns)).astype(int)
    return np.array([np.log(power[:, ring == k].mean() + 1e-12) for k in range(1, _WAVES + 1)])


def scores(data: Data, made: Array) -> dict[str, float]:
    """RMSE, bias, spectrum distance and conservation error of fields of the test hours."""
    truth, small = data.large[data.test], data.small[data.test]
    means = made.reshape(len(made), _SMALL[0], SCALE, _SMALL[1], SCALE).mean((2, 4))
    return {
        "rmse_k": rmse(made, truth),
        "bias_k": float((made - truth).mean()),
        "spectrum": float(np.abs(spectrum(made) - spectrum(truth)).mean()),
        "conservation": float(np.abs(means - small).max() / np.abs(small).max()),
    }
