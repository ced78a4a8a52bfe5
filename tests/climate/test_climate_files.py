# SPDX-License-Identifier: Apache-2.0
"""Files and the command line: NetCDF and Zarr, whole or not at all, without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import climate_data as made
import numpy as np
import pytest

from ternary_ops import climate
from ternary_ops.cli import main
from ternary_ops.climate.opening import open_data
from ternary_ops.errors import BadConfig, FormatError

for package in ("dask", "netCDF4", "zarr"):
    pytest.importorskip(package, reason="NOT RUN: pip install '.[climate]'")


def prepared(folder: Path, rows: int = 7, columns: int = 9) -> tuple[Path, Path, Any]:
    """A model and data as files, and what should come of them."""
    model, data = made.local_model(), made.dataset(made.grid(rows, columns), days=10)
    model.save(folder / "m.safetensors")
    data.to_netcdf(folder / "in.nc")
    return folder / "m.safetensors", folder / "in.nc", climate.downscale(data, model)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_the_command_writes_the_same_bits_without_torch(tmp_path: Path, suffix: str) -> None:
    model, source, wanted = prepared(tmp_path)
    out = tmp_path / f"out.{suffix}"
    code = """
import sys
sys.modules["torch"] = None
from ternary_ops.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = ["downscale", str(source), str(out), "--model", str(model), "--chunk", "4", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shape"] == [10, 14, 18]
    found = open_data(str(out))
    np.testing.assert_array_equal(found["tas"].values, wanted.values)
    assert found["tas"].attrs["units"] == "degC" and found.attrs["Conventions"].startswith("CF")
    assert found["lat"].attrs["units"] == "degrees_north"
    assert main(command) == 2  # the name is taken
    assert main([*command, "--overwrite", "--quiet"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "m.safetensors", out.name]


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_failure_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    import dask.array

    def fail(block: Any) -> Any:
        raise OSError(28, "No space left on device")

    data = made.dataset(made.grid(), days=5)
    values = dask.array.zeros(data["tas"].shape, chunks=2).map_blocks(fail, dtype=np.float32)
    bad = data["tas"].copy(data=values)
    with pytest.raises(OSError, match="No space"):
        climate.write(bad, tmp_path / f"x.{suffix}")
    assert list(tmp_path.iterdir()) == []
    climate.write(data, tmp_path / f"x.{suffix}")
    with pytest.raises(BadConfig, match="new name"):
        climate.write(data, tmp_path / f"x.{suffix}")
    with pytest.raises(OSError, match="No space"):
        climate.write(bad, tmp_path / f"x.{suffix}", overwrite=True)
    np.testing.assert_array_equal(open_data(str(tmp_path / f"x.{suffix}"))["tas"], data["tas"])


def test_another_name_of_the_variable_and_its_units(tmp_path: Path) -> None:
    model, _, wanted = prepared(tmp_path)
    data = made.dataset(made.grid(7, 9), days=10).rename(tas="t2m")
    data["t2m"].attrs = {}
    data.to_netcdf(tmp_path / "other.nc")
    command = ["downscale", str(tmp_path / "other.nc"), str(tmp_path / "o.nc"), "--quiet"]
    command += ["--model", str(model), "--variable", "t2m"]
    assert main(command) == 2
    assert main([*command, "--units", "tas=degC"]) == 0
    np.testing.assert_array_equal(open_data(str(tmp_path / "o.nc"))["tas"], wanted)


def test_files_that_are_no_climate_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.nc").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="gridded data"):
        open_data(str(tmp_path / "x.nc"))
    with pytest.raises(FileNotFoundError):
        open_data(str(tmp_path / "y.nc"))


def test_fit_score_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = made.pair(days=20)
    for name, one in sets.items():
        one.isel(time=slice(0, 15)).to_netcdf(tmp_path / f"{name}.nc")
        one.isel(time=slice(15, None)).to_netcdf(tmp_path / f"{name}_test.nc")
    model, fine = tmp_path / "m.safetensors", tmp_path / "fine.nc"
    data = [f"{name}={tmp_path / name}.nc" for name in sets]
    fit = ["climate", "fit", *data, "--target", "target", "-o", str(model), "--epochs", "1"]
    assert main([*fit, "--quiet"]) == 0
    low = str(tmp_path / "coarse_test.nc")
    assert main(["downscale", low, str(fine), "--model", str(model), "--quiet"]) == 0
    capsys.readouterr()
    truth = str(tmp_path / "target_test.nc")
    score = ["climate", "score", str(fine), truth, "--coarse", low, "--model", str(model), "--json"]
    assert main(score) == 0
    assert json.loads(capsys.readouterr().out)["conservation"] <= 1e-6
    assert main(["climate", "score", str(fine), str(fine), "--model", str(model)]) == 0
    trained = str(tmp_path / "target.nc")
    assert main(["climate", "score", trained, trained, "--model", str(model)]) == 2
    pytest.importorskip("matplotlib")
    image = tmp_path / "map.png"
    assert main(["climate", "plot", str(fine), "-o", str(image), "--step", "1"]) == 0
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert main(["climate", "plot", str(fine), "-o", str(image), "--step", "99"]) == 2
