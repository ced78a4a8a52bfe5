# SPDX-License-Identifier: Apache-2.0
"""Every benchmark of the project: its command, the question it answers, and where its results are.

`ternary-ops bench --list` prints the table, docs/benchmarks.md holds it between two markers:
`python -m ternary_ops.benchmark.registry docs/benchmarks.md` writes it there again. Standard
library only. Scripts of bench/ and files of bench/results are those of a checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ternary_ops.benchmark.bench_table import Bench, with_table

_ENGINES = ("OpenVINO", "ONNX Runtime", "torch")
_FULL = ("train", "bench")
_SR = ("train", "sr")
BENCHES = (
    Bench(
        "networks",
        "how long a whole network takes, by share of zeros, pattern, image size and threads",
        "--models resnet18 --zeros 0.95,0.9,0.8,0 --threads 1,2",
        _ENGINES,
        ("networks.csv",),
        _FULL,
    ),
    Bench(
        "zoo",
        "which networks of torchvision and timm compile, how right and how fast they are",
        "--only 'timm:resnet*'",
        ("torch",),
        ("zoo.csv", "check.csv"),
    ),
    Bench(
        "zoo_epoch",
        "the networks of zoo that lose most at 8 bits, trained for some steps",
        results=("zoo_epoch.csv",),
    ),
    Bench(
        "fastest",
        "the default recipe on ResNet-18, a column an instruction set; writes README's sentence",
        "",
        ("OpenVINO",),
        ("fastest_*.csv",),
        _FULL,
    ),
    Bench(
        "growth",
        "how time grows with density and image size, and where it breaks even with dense 8 bits",
        "",
        ("OpenVINO",),
        ("growth.csv", "growth.svg"),
        _FULL,
    ),
    Bench(
        "lite0",
        "how often EfficientNet-Lite0 with its published weights, calibrated to 8 bits, says what "
        "the float network says",
        "--csv lite0.csv",
        ("OpenVINO", "ONNX Runtime"),
        ("lite0.csv",),
        _FULL,
    ),
    Bench(
        "footprint",
        "memory and start of a saved network, each engine alone in a fresh process",
        "--models resnet18",
        _ENGINES,
        ("footprint.csv",),
        _FULL,
    ),
    Bench(
        "layers",
        "how near single 8-bit convolutions come to the processor's peak",
        "--threads 1 --csv layers_1.csv",
        ("torch int8",),
        ("layers_*.csv",),
    ),
    Bench(
        "tokens",
        "where the time of a hybrid of convolution and attention goes, operator by operator",
        "--csv tokens.csv",
        ("torch",),
    ),
    Bench(
        "matvec",
        "ternary linear layers on 1 to 128 rows",
        "--threads 1 --csv matvec_1.csv",
        ("ONNX Runtime", "OpenVINO", "torch"),
        ("matvec_*.csv", "linear_1.csv"),
        _FULL,
    ),
    Bench(
        "weight_only",
        "linear layers of integer weights whose inputs stay float",
        "--csv weight_only_1.csv",
        ("torch",),
        ("weight_only_1.csv",),
    ),
    Bench(
        "block_sparse",
        "float block-sparse convolutions: from which density on they beat dense engines",
        "--csv block_sparse_1.csv",
        ("torch (oneDNN)", "OpenVINO"),
        ("block_sparse_*.csv", "block_sparse_*.svg"),
        _FULL,
    ),
    Bench(
        "codec",
        "bytes and speed of the entropy coder",
        "--csv codec.csv",
        ("xz", "zstd", "constriction"),
        ("codec.csv",),
        ("test", "bench"),
    ),
    Bench(
        "file_sizes",
        "bytes of whole files against gzip, xz and the entropy bound",
        "",
        ("gzip", "xz"),
        ("file_sizes.csv",),
    ),
    Bench(
        "permute",
        "occupied quads and time before and after channels are permuted",
        "--csv permute.csv",
        (),
        ("permute.csv",),
    ),
    Bench(
        "training_step",
        "what masks and fake quantization add to a training step",
        "--csv training_step.csv",
        ("torch",),
        ("training_step.csv",),
    ),
    Bench(
        "accuracy",
        "accuracy against bytes and milliseconds, CIFAR-10; `train` repeats any network, "
        "`evaluate` judges the files in bench/results/networks",
        "evaluate bench/results/networks/*.safetensors",
        ("torch int8",),
        ("accuracy*.csv", "accuracy.svg", "networks/*"),
    ),
    Bench(
        "schedules",
        "which pruning schedule is best under one budget of steps, by a paired test",
        "run fashion --seeds 5",
        (),
        ("schedules.csv", "schedules.svg"),
    ),
    Bench(
        "spach",
        "which spatial mixing is best at equal parameters: convolution, attention, MLP or a hybrid",
        "study --folder runs",
    ),
    Bench(
        "token_race_train",
        "weights for the race of token networks: DeiT-tiny and the hybrid, trained at 64 px",
        "--folder runs",
    ),
    Bench(
        "patterns",
        "what each pattern of pruning is worth in the engine: time and bytes by share of zeros",
        "--isas avx2,avx512vnni --csv patterns.csv",
        results=("patterns.csv",),
    ),
    Bench(
        "ephemeral",
        "zeros in activations: how many, what they cost in accuracy, what the engine would gain",
        "--csv ephemeral.csv",
        results=("ephemeral.csv",),
    ),
    Bench(
        "occam",
        "does pruning help a network that has learned wrong labels by heart",
        "run --seeds 3",
        results=("occam.csv", "occam.svg"),
    ),
    Bench(
        "sparse_training",
        "what growth (RigL, SET) adds to a training step, and what sparse training gives",
        "overhead",
        results=("sparse_training*.csv",),
    ),
    Bench(
        "filters",
        "what half of a ResNet's parameters, removed in mid-training, cost: SbF, L1, controls",
        "train --folder runs",
        (),
        ("filters.csv", "filter_steps.csv"),
    ),
    Bench(
        "cifar10",
        "CIFAR-10 and a pretrained ResNet-20 for `ternary-ops compress`",
        "resnet20.safetensors",
        (),
        ("compress_cifar10.txt",),
    ),
    Bench(
        "equality",
        "whether outputs equal the NumPy reference and a fake-quantized PyTorch network",
        "--csv equality.csv",
        (),
        ("equality.csv",),
        ("train", "test"),
    ),
    Bench(
        "equalize",
        "PSNR and time of super-resolution networks with and without channel equalization",
        "--threads 1",
        (),
        ("equalize.csv",),
        _SR,
    ),
    Bench(
        "reconstruct",
        "networks pruned in one step: reconstruction against magnitude, and its processor time",
        "--threads 1",
        (),
        ("reconstruct.csv",),
        _SR,
    ),
    Bench(
        "sr",
        "milliseconds, PSNR and memory of super-resolution networks, float32 and 8-bit",
        "--threads 1 --csv sr_1.csv",
        ("OpenVINO", "torch"),
        ("sr_1.csv",),
        (*_SR, "bench"),
    ),
    Bench(
        "sr_train",
        "super-resolution networks in quads: fine-tuned, PSNR of the program file",
        "train efdn-x2-int8",
        ("the float network",),
        ("sr_quality.csv", "sr/*"),
        _SR,
    ),
    Bench(
        "semi",
        "what images without a partner add to few pairs: ERA5 temperature, photos",
        "era5 --pairs 50,100,250,400",
        results=("semi_era5.csv",),
        extras=(*_SR, "bench"),
    ),
    Bench(
        "sr_attention",
        "ESA, HFAB and SPAN's gate as one operator each",
        "--csv sr_attention.csv",
        ("torch",),
        ("sr_attention.csv",),
    ),
    Bench(
        "upscale",
        "a photo made twice as large, whole processes",
        "--csv upscale.csv",
        ("waifu2x (ncnn)",),
        ("upscale.csv",),
        _SR,
    ),
    Bench(
        "climate",
        "daily temperature over Iberia from coarse predictors: baselines, networks, a warmer one",
        "iberia --rows networks --csv climate_networks.csv",
        results=("climate_*",),
        extras=("train", "climate"),
    ),
    Bench(
        "search",
        "whether the network that a search finds takes the time that was asked for",
        "--folder FOLDER",
        results=("search.csv",),
    ),
    Bench(
        "equal_time",
        "accuracy at equal milliseconds: the search, narrow dense networks, zeros or widths alone",
        "train --folder FOLDER",
    ),
    Bench(
        "layer_costs",
        "whether the engine's cost table says what whole networks take, with zeros, kinds of "
        "weights and widths that were not measured",
        "",
        (),
        ("layer_costs.csv",),
    ),
    Bench(
        "time_scope",
        "accuracy at equal milliseconds: zeros where they save time, or equal in every layer",
        "--seeds 0,1,2",
        results=("time_scope.csv",),
    ),
    Bench(
        "gpu_static",
        "registers, spills, tensor cores and loads in the machine code of the GPU kernels; "
        "no GPU needed",
        "--check",
        (),
        ("gpu_static*.csv",),
        ("gpu",),
    ),
    Bench(
        "gpu_networks",
        "predicted time of FMEN-S and ResNet-18 on five GPUs; no GPU needed",
        "",
        (),
        ("gpu_networks.csv",),
        ("gpu",),
    ),
    Bench(
        "gpu_rivals",
        "machine code of our GPU kernels beside that of others; no GPU needed",
        "",
        ("gemlite", "torch.sparse"),
        ("gpu_rivals.csv",),
        ("gpu", "bench"),
    ),
    Bench(
        "gpu_device",
        "the GPU kernels on a GPU, checked, then timed; `--rehearse` checks them without one",
        "",
        ("torch", "gemlite"),
        (),
        ("gpu",),
    ),
    Bench(
        "compile_walk",
        "how often compiling one convolution turns back to a file it has left",
        "--csv compile_walk.csv",
        (),
        ("compile_walk.csv",),
    ),
    Bench(
        "instructions",
        "how many instructions six programs execute, for a comparison of two commits",
        "--csv instructions.csv",
        (),
        ("instructions.csv",),
    ),
    Bench(
        "install",
        "size of a wheel, its installation without compiler and torch, and its import time",
        "python3.10 python3.11 python3.12 python3.13 --csv install.csv",
        results=("install.csv",),
        extras=(),
    ),
    Bench(
        "ternary-ops bench",
        "where the time of one network goes, node by node",
        "--model FILE|NAME --plot bench.png",
        _ENGINES,
        (),
        _FULL,
    ),
    Bench(
        "ternary-ops bench",
        "the table of gpu_static on this installation",
        "--static",
        extras=("gpu",),
    ),
)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_table(path.read_text(encoding="utf-8"), BENCHES), encoding="utf-8")
