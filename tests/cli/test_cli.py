# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, and its exit codes 0, 1 and 2."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from machines import HANGS

import ternary_ops as tops
from ternary_ops import reference, runtime, selftest
from ternary_ops.cli import main
from ternary_ops.models import digits_resnet

COMMANDS = ("info", "verify", "check", "compress", "run", "report", "export", "bench")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of a small network that was pruned at one stroke."""
    torch.manual_seed(0)
    x = torch.rand(8, 1, 8, 8)
    model = digits_resnet(width=8).eval()
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.7)))
    tops.prune.Pruner(model, total_steps=1).step()
    tops.calibrate(model, [x])
    path = tmp_path_factory.mktemp("program") / "net.safetensors"
    tops.compile(model, x[:1]).save(path)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, object]:
    assert main([str(word) for word in argv] + ["--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that a refused command writes to stderr."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("ternary-ops: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: ternary-ops {command}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["frobnicate"], ["run"], ["compress", "--epochs", "many"]])
def test_wrong_use_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize("extra", [("--zeros", "0.5"), ("--recipe", "smallest")])
def test_a_target_beside_what_a_search_chooses_is_refused(
    extra: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", "--target-bytes", "2000", *extra]) == 2
    assert "--target-bytes without it" in capsys.readouterr().err


def test_module_and_console_script_are_one(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("ternary-ops")
    for command in ([str(script)], [sys.executable, "-m", "ternary_ops"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"ternary-ops {tops.__version__}\n")


def test_info_names_the_instruction_set_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "info")
    chosen = [name for name, state in found["isa"].items() if state.startswith("chosen")]
    assert chosen == [runtime.isa()]
    assert found["versions"]["ternary-ops"] == tops.__version__
    assert main(["info"]) == 0
    assert runtime.isa() in capsys.readouterr().out


def test_info_names_a_torch_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "newer" not in run_json(capsys, "info")["extras"]["train"]
    honest = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "2.9.1" if n == "torch" else honest(n))
    found = run_json(capsys, "info")
    assert found["versions"]["torch"] == "2.9.1"
    assert found["extras"]["train"] == "torch 2.10 or newer is needed"


def test_verify_passes_on_every_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()  # a busy machine is slow, not wrong
    found = run_json(capsys, "verify", "--seed", 3)
    assert found["passed"] and time.process_time() - start < 30
    assert {check["isa"] for check in found["checks"]} == set(runtime.available_isas())
    kernels = {check["kernel"] for check in found["checks"]}
    for word in ("dense", "sparse", "ternary", "int8", "float", "linear", "program"):
        assert any(word in kernel for kernel in kernels)


def test_verify_fails_when_a_kernel_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One unit of one output pixel, and one float product in a few hundred, must be noticed."""
    honest = reference.epilogue

    def broken(*args: object, **kwargs: object) -> np.ndarray:
        out = honest(*args, **kwargs).copy()
        flat = out.reshape(-1)
        flat[-1] = flat[-1] ^ 1 if out.dtype == np.uint8 else flat[-1] * 1.001 + 0.001
        return out

    monkeypatch.setattr(selftest.reference, "epilogue", broken)
    assert main(["verify", "--isa", "scalar"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "0 passed" in out.splitlines()[-1]


def test_run_needs_no_torch_and_equals_the_program(program: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", x)
    code = "import sys; sys.modules['torch'] = None; from ternary_ops.cli import main; main()"
    command = [sys.executable, "-c", code + " and sys.exit(1)"]
    done = subprocess.run(
        [*command, "run", str(program), "x.npy", "-o", "y.npy", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(y, runtime.load(program)(x))
    results = json.loads(done.stdout)["results"]
    assert [row["class"] for row in results] == y.argmax(1).tolist()


def test_run_takes_single_inputs_bytes_and_images(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "rgb.png")
    np.save(tmp_path / "bytes.npy", pixels[None])
    files = [tmp_path / name for name in ("a.png", "bytes.npy", "rgb.png")]
    found = run_json(capsys, "run", program, *files)
    scores = [row["score"] for row in found["results"]]
    expected = runtime.load(program)(pixels[None, None].astype(np.float32) / np.float32(255))
    assert scores == [float(expected.max())] * 3
    # Normalized inputs differ.
    other = run_json(capsys, "run", program, files[0], "--mean", "0.5", "--std", "0.25")
    assert other["results"][0]["score"] != scores[0]


def test_run_refuses_bad_input(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "x.npy"
    np.save(good, np.zeros((1, 1, 8, 8), np.float32))
    text = tmp_path / "text.npy"
    text.write_text("not an array")
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    channels = tmp_path / "channels.npy"
    np.save(channels, np.zeros((1, 3, 8, 8), np.float32))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(program.read_bytes()[:-5])
    assert "FileNotFoundError" in refused(capsys, "run", program, tmp_path / "none.npy")
    assert "FormatError" in refused(capsys, "run", program, text)
    assert "FormatError" in refused(capsys, "run", program, pickled)
    assert "UnsupportedShape" in refused(capsys, "run", program, channels)
    assert "FormatError" in refused(capsys, "run", cut, good)
    assert "FormatError" in refused(capsys, "run", good, good)
    assert "FormatError" in refused(capsys, "run", program, cut)
    assert "BadConfig" in refused(capsys, "run", program, good, "-o", tmp_path / "y.txt")
    assert "BadConfig" in refused(capsys, "run", program, good, "--std", "0")
    assert "BadConfig" in refused(capsys, "run", program, good, "--mean", "x")
    assert not list(tmp_path.glob("y.*"))


def test_report_counts_the_file_and_its_layers(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, chart = tmp_path / "layers.csv", tmp_path / "chart.png"
    found = run_json(
        capsys, "report", program, "--against", program, "--csv", table, "--plot", chart
    )[str(program)]
    assert found["file_bytes"] == program.stat().st_size
    assert found["zero_quads_percent"] == pytest.approx(70, abs=0.05)
    assert found["against"]["agreement"] == 100
    assert found["against"]["largest_difference"] == 0
    rows = list(csv.DictReader(table.open()))
    assert [row["name"] for row in rows] == [row["name"] for row in found["layers"]]
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(program)]) == 0
    assert "empty quads" in capsys.readouterr().out


def test_report_refuses_bad_input(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "BadConfig" in refused(capsys, "report", program, "--sample", "1,2,8,8")
    assert "BadConfig" in refused(capsys, "report", program, "--sample", "a")
    assert "BadConfig" in refused(capsys, "report", program, program, "--plot", "x.png")
    assert "FileNotFoundError" in refused(capsys, "report", "none.safetensors")


def test_bench_prints_a_row_per_engine_and_a_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "bench.csv"
    argv = ("bench", "--op", "conv2d", "--shape", "8,9,7,12,3", "--seconds", "0.05")
    assert main([*argv, "--csv", str(table), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    rows, nodes = printed["engines"], printed["nodes"]
    assert [row["engine"] for row in rows] == ["ternary-ops", "torch fp32", "torch int8"]
    assert rows[1]["match"] == "yes" and rows[1]["times ours"] > 0
    (layer,) = [node for node in nodes if node["op"] == "conv2d"]
    assert 0 < layer["density"] < 0.2 and layer["ms"] > 0 and layer["% of ceiling"] > 0
    assert len(table.read_text().splitlines()) == len(rows) + len(nodes) + 1


def test_bench_of_a_file_and_of_a_network_show_every_node(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = len(runtime.load(program).graph.nodes)
    quick = ("--seconds", "0.02", "--batch", "2")
    chart = tmp_path / "bench.svg"
    assert main(["bench", "--model", str(program), *quick, "--plot", str(chart)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("conv2d") >= 4 and "% of ceiling" in shown and chart.stat().st_size > 1000
    found = run_json(capsys, "bench", "--model", "digits_resnet", "--against", "", *quick)
    assert isinstance(found["nodes"], list) and isinstance(found["engines"], list)
    assert len(found["nodes"]) == nodes and len(found["engines"]) == 1


@pytest.mark.parametrize("missing", ["openvino", "onnxruntime"])
def test_a_missing_rival_names_the_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    argv = ("--op", "linear", "--shape", "16,8", "--against", missing)
    complaint = refused(capsys, "bench", *argv)
    assert "MissingExtra" in complaint and "ternary-ops[bench]" in complaint


def test_bench_refuses_bad_input(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "BadConfig" in refused(capsys, "bench", "--op", "linear", "--shape", "1")
    assert "BadConfig" in refused(capsys, "bench", "--against", "everything")
    assert "BadConfig" in refused(capsys, "bench", "--batch", "0")
    assert "BadConfig" in refused(capsys, "bench", "--model", "nothing")
    assert "BadConfig" in refused(capsys, "bench", "--model", program, "--against", "torch")


def test_a_closed_pipe_is_no_error(program: Path) -> None:
    command = f"{sys.executable} -m ternary_ops report {program} --json | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=program.parent,
    )
    assert done.stderr == "" and done.returncode == 0


def test_interrupted_compress_leaves_nothing(tmp_path: Path) -> None:
    job = subprocess.Popen(
        [sys.executable, "-m", "ternary_ops", "compress"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell that runs the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert job.stderr is not None
    assert job.stderr.readline().startswith("train")
    job.send_signal(signal.SIGINT)
    _, rest = job.communicate(timeout=HANGS)
    assert job.returncode == 1
    assert rest.splitlines()[-1] == "ternary-ops: interrupted"
    assert list(tmp_path.iterdir()) == []
