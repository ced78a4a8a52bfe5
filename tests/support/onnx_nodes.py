"""ONNX files of one random node, with odd attributes, shapes, opsets and constants."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_files import Builder, ours, run

from ternary_ops.errors import TernaryOpsError

Shape = tuple[int, ...]
OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 21, 22)
SHAPES: tuple[Shape, ...] = (
    (2, 4, 5, 7), (2, 4, 6, 6), (2, 6), (3, 3, 3), (1, 4, 8, 5), (2, 8, 3, 4),
    (2, 3, 2, 2, 2), (1, 1, 4, 4), (5,), (1, 5),
)  # fmt: skip


class Dice:
    """Seeded choices."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def often(self, share: float = 0.5) -> bool:
        return bool(self.rng.random() < share)

    def floats(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape).astype(np.float32)

    def some(self, share: float = 0.5, **choices: Sequence[Any]) -> dict[str, Any]:
        """Some of these attributes, each with one of its values."""
        return {k: self.pick(*v) for k, v in choices.items() if self.often(share)}


class Nodes(Builder):
    """One method an operator or kind: adds the node "out" for an image of a shape."""

    def __init__(self, dice: Dice, shape: Shape, opset: int) -> None:
        super().__init__()
        self.dice, self.shape, self.opset = dice, shape, opset

    def convolution(self) -> None:
        d, wide = self.dice, self.shape[1]
        group = d.pick(1, 1, wide)
        kernel, filters = [d.number(1, 3), d.number(1, 3)], group * d.number(1, 3)
        at = d.some(strides=[[1, 1], [2, 1]], dilations=[[1, 1], [1, 2]], group=[group])
        inputs = ["image", self.constant("w", d.floats(filters, wide // group, *kernel))]
        if d.often():
            inputs.append(self.constant("b", d.floats(filters)))
        self.add("Conv", inputs, "out", **{"group": group} | at | self.pads(2))

    def pads(self, axes: int) -> dict[str, Any]:
        d, pads = self.dice, [self.dice.number(0, 2) for _ in range(axes)]
        if d.often(0.2):
            return d.some(auto_pad=["VALID", "SAME_UPPER"])
        return d.some(0.7, pads=[pads + pads, pads + pads, [0] * axes + pads])

    def pool(self) -> None:
        d, axes = self.dice, len(self.shape) - 2
        op, kernel = d.pick("MaxPool", "AveragePool"), [d.number(2, 3) for _ in range(axes)]
        at = d.some(strides=[[1] * axes, [2] * axes])
        if self.opset >= 10:
            at |= d.some(ceil_mode=[0, 1])
        if op == "AveragePool":
            at |= d.some(count_include_pad=[0, 1])
        self.add(op, ["image"], "out", kernel_shape=kernel, **at, **self.pads(axes))

    def gemm(self) -> None:
        d, (rows, depth), wide = self.dice, self.shape, self.dice.number(1, 5)
        at = d.some(alpha=[0.5, -2.0], beta=[0.5, 0.0], transB=[0, 1])
        weight = d.floats(wide, depth) if at.get("transB") else d.floats(depth, wide)
        bias = d.pick((wide,), (1, wide), (1,), (), (rows, wide), (rows, 1))
        names = [self.constant("w", weight), self.constant("b", d.floats(*bias))]
        self.add("Gemm", ["image", *names[: d.number(1, 2)]], "out", **at)

    def matmul(self) -> None:
        depth = self.shape[-1]
        weight = self.dice.pick((depth, 3), (depth,), (1, depth, 2))
        self.add("MatMul", ["image", self.constant("w", self.dice.floats(*weight))], "out")

    def batchnorm(self) -> None:
        at = self.dice.some(epsilon=[1e-3], momentum=[0.5])
        if self.opset >= 14:
            at |= self.dice.some(0.3, training_mode=[0, 1])
        floats = self.dice.floats
        state = [self.constant(n, np.abs(floats(self.shape[1])) + 0.1) for n in "sbmv"]
        self.add("BatchNormalization", ["image", *state], "out", **at)

    def function(self) -> None:
        d, old = self.dice, self.opset < 11
        rank = len(self.shape)
        at: dict[str, Any] = {}
        op = d.pick("Relu", "Elu", "LeakyRelu", "HardSigmoid", "HardSwish", "Cast", "Flatten",
                    "Softmax", "GlobalAveragePool", "Dropout", "Concat")  # fmt: skip
        if op in ("Elu", "LeakyRelu", "HardSigmoid"):
            at = d.some(alpha=[0.3, -0.2, 1 / 6])
        elif op == "Cast":
            at = {"to": d.pick(1, 7)}
        elif op in ("Flatten", "Softmax", "Concat"):
            at = {"axis": d.number(0 if old else -rank, rank - 1)}
        self.add(op, ["image", "image"] if op == "Concat" else ["image"], "out", **at)

    def clip(self) -> None:
        lo, hi = self.dice.pick(-1.0, 0.0, 0.3), self.dice.pick(0.4, 6.0)
        if self.opset < 11:
            self.add("Clip", ["image"], "out", **self.dice.some(0.7, min=[lo], max=[hi]))
            return
        bounds = [self.constant("lo", lo), self.constant("hi", hi)]
        self.add("Clip", ["image", *(b if self.dice.often(0.7) else "" for b in bounds)], "out")

    def arithmetic(self) -> None:
        c = self.constant("c", np.abs(self.dice.floats(*self.other())) + 0.5)
        inputs = self.dice.pick(["image", c], ["image", c], [c, "image"])
        self.add(self.dice.pick("Add", "Sub", "Mul", "Div"), inputs, "out")

    def other(self) -> Shape:
        """Of an operand that broadcasts, or not."""
        wide, ones = self.shape[1:2], (1,) * (len(self.shape) - 2)
        shapes = [(), (1,), self.shape[-1:], self.shape, (*wide, *ones), (1, *wide, *ones), wide]
        picked: Shape = self.dice.pick(*shapes, (1,) * (len(self.shape) + 1), (2, *self.shape))
        return picked

    def slopes(self) -> None:
        self.add("PRelu", ["image", self.constant("c", self.dice.floats(*self.other()))], "out")

    def reshape(self) -> None:
        first, last, whole = self.shape[0], self.shape[-1], int(np.prod(self.shape))
        wanted = self.dice.pick(
            [0, -1], [-1, last], [1, -1], [first, -1], [-1], [-1, whole // first], [0, 0, -1],
            [*self.shape, 1, 1], [2, -1], [first * last, -1],
        )  # fmt: skip
        at = self.dice.some(0.3, allowzero=[0, 1]) if self.opset >= 14 else {}
        self.add("Reshape", ["image", self.constant("s", wanted, np.int64)], "out", **at)

    def sizes(self) -> None:
        number = self.dice.pick(0, [0], [0, 1], -1)
        part = self.add("Shape", ["image"], "shape")
        part = self.add("Gather", [part, self.constant("i", number, np.int64)], "part")
        if self.dice.often():
            two = self.constant("two", self.dice.pick(1, 2), np.int64)
            part = self.add(self.dice.pick("Mul", "Add", "Sub", "Div"), [part, two], "made")
        rest = self.constant("rest", [-1], np.int64)
        self.add("Reshape", ["image", self.add("Concat", [part, rest], "s", axis=0)], "out")

    def axes(self) -> None:
        d, rank = self.dice, len(self.shape)
        op = d.pick("Squeeze", "Unsqueeze", "ReduceMean")
        axes = sorted({d.number(0 if self.opset < 11 else -rank, rank - 1) for _ in range(2)})
        at = d.some(keepdims=[0, 1]) if op == "ReduceMean" else {}
        if self.opset < (18 if op == "ReduceMean" else 13):
            self.add(op, ["image"], "out", axes=axes, **at)
        else:
            self.add(op, ["image", self.constant("a", axes, np.int64)], "out", **at)

    def moves(self) -> None:
        d, rank = self.dice, len(self.shape)
        op = d.pick("Transpose", "Slice", "Pad")
        if op == "Transpose":
            order = [int(a) for a in d.rng.permutation(rank)]
            self.add(op, ["image"], "out", **d.some(0.8, perm=[order]))
        elif op == "Slice":
            self._slice(sorted({d.number(0 if self.opset < 10 else -rank, rank - 1)}))
        else:
            self._pad([d.number(-1 if d.often(0.1) else 0, 2) for _ in range(2 * rank)])

    def _slice(self, axes: list[int]) -> None:
        d = self.dice
        lists = {"starts": [d.number(-2, 1)], "ends": [d.pick(-1, 3, 2**31 - 1, 2**63 - 1)]}
        if self.opset < 10:
            self.add("Slice", ["image"], "out", axes=axes, **lists)
            return
        given = [*lists.values(), axes, [d.pick(1, 2, 1, -1)]][: d.number(3, 4)]
        names = [self.constant(f"l{i}", v, np.int64) for i, v in enumerate(given)]
        self.add("Slice", ["image", *names], "out")

    def _pad(self, pads: list[int]) -> None:
        d = self.dice
        if len(pads) == 8 and d.often(0.7):
            pads[0] = pads[1] = pads[4] = pads[5] = 0
        at = d.some(mode=["constant", "reflect", "edge", *["wrap"] * (self.opset > 18)])
        if self.opset < 11:
            self.add("Pad", ["image"], "out", pads=pads, **at, **d.some(value=[0.5]))
            return
        names = [self.constant("p", pads, np.int64)]
        names += [self.constant("v", np.float32(0.5))] if d.often() else []
        self.add("Pad", ["image", *names], "out", **at)

    def resize(self) -> None:
        d = self.dice
        places = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
        rounds = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        at = d.some(0.9, mode=["nearest", "linear", "cubic"])
        at |= d.some(0.8, coordinate_transformation_mode=places, nearest_mode=rounds)
        if self.opset >= 18:
            at |= d.some(0.2, antialias=[1], keep_aspect_ratio_policy=["stretch", "not_larger"])
        factors = d.pick((2, 2), (3, 1), (1.5, 2.25), (0.5, 0.5), (0.3, 0.7), (1, 1), (0.2, 0.2))
        inputs = ["image", "", self.constant("scales", (1, 1, *factors))]
        if d.often(0.3):
            wanted = [*self.shape[:2], d.number(1, 9), d.number(1, 9)]
            inputs = ["image", "", "", self.constant("sizes", wanted, np.int64)]
        self.add("Resize", inputs, "out", **at)


_ANY = (Nodes.arithmetic, Nodes.function, Nodes.clip, Nodes.slopes, Nodes.reshape, Nodes.sizes,
        Nodes.axes, Nodes.moves, Nodes.matmul)  # fmt: skip


def write(path: Path, seed: int) -> tuple[NDArray[np.float32], str] | None:
    """An image for the file written, and its node; None where ONNX itself refuses the shapes."""
    dice = Dice(seed)
    shape, opset = dice.pick(*SHAPES), dice.pick(*OPSETS)
    nodes = Nodes(dice, shape, opset)
    kinds: list[Callable[[Nodes], None]] = list(_ANY)
    kinds += [Nodes.batchnorm] if len(shape) > 1 else []
    kinds += [Nodes.gemm] if len(shape) == 2 else []
    kinds += [Nodes.pool] if len(shape) > 2 else []
    if len(shape) == 4:
        kinds += [Nodes.convolution] * 2 + [Nodes.resize] * 2 * (opset > 10)
    dice.pick(*kinds)(nodes)
    free = dice.often(0.4)
    image = [f"d{a}" if free and a != 1 and dice.often(0.7) else n for a, n in enumerate(shape)]
    try:
        nodes.save(path, "out", opset, image)
    except onnx.shape_inference.InferenceError:
        return None
    last = onnx.helper.printable_node(nodes.nodes[-1])
    return dice.floats(*shape), f"seed {seed}, opset {opset}, {shape} as {image}: {last}"


def compare(seeds: Iterable[int], path: Path) -> Counter[str]:
    """How many files are equal, refused, or none that ONNX Runtime takes; AssertionError naming the
    node of one that is wrong, or fails without a name.
    """
    counts: Counter[str] = Counter()
    for seed in seeds:
        made = write(path, seed)
        if made is None:
            continue
        x, what = made
        try:
            theirs = run(path, x, plain=True)
        except Exception:  # ONNX Runtime's own errors have no common base
            counts["invalid"] += 1
            continue
        try:
            mine = ours(path, x)
        except TernaryOpsError:
            counts["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(what) from error
        assert mine.shape == theirs.shape, what
        close = np.isclose(mine, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max(initial=1))
        assert (close | np.isnan(theirs)).all(), what
        counts["equal"] += 1
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(compare(range(*map(int, sys.argv[1:3])), Path(folder) / "node.onnx"))
