"""Random ONNX graphs: values that several nodes read, constants between, quantizers anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx_files import Builder
from onnx_nodes import Dice

Value = tuple[str, int, int]  # name, channels, height and width


class Graphs(Builder):
    """One method a kind of node: reads a value, returns the one it makes, or None."""

    def __init__(self, dice: Dice) -> None:
        super().__init__()
        self.dice = dice
        self.values: list[Value] = [("image", 3, 8)]
        self.weights: dict[tuple[int, int], str] = {}

    def numbers(self, values: NDArray[np.float32]) -> str:
        return self.constant(f"constant_{len(self.constants)}", values)

    def name(self) -> str:
        return f"value_{len(self.nodes)}"

    def convolution(self, x: str, wide: int, size: int) -> Value:
        d, filters = self.dice, self.dice.number(2, 6)
        if (filters, wide) not in self.weights or d.often(0.7):
            values = d.floats(filters, wide, 3, 3) / np.float32(3 * wide**0.5)
            name = f"layer_{len(self.constants)}.weight"
            quantized = d.often() and self.weight(name, values, d.pick(0, None))
            self.weights[filters, wide] = quantized or self.numbers(values)
        bias = [self.numbers(d.floats(filters))] if d.often() else []
        inputs = [x, self.weights[filters, wide], *bias]
        return self.add("Conv", inputs, self.name(), pads=[1] * 4), filters, size

    def function(self, x: str, wide: int, size: int) -> Value:
        op = self.dice.pick("Relu", "Identity", "Tanh", "LeakyRelu")
        return self.add(op, [x], self.name()), wide, size

    def norm(self, x: str, wide: int, size: int) -> Value:
        floats = self.dice.floats
        state = [self.numbers(np.abs(floats(wide)) + np.float32(0.3)) for _ in range(4)]
        return self.add("BatchNormalization", [x, *state], self.name()), wide, size

    def offset(self, x: str, wide: int, size: int) -> Value:
        shape = self.dice.pick((wide, 1, 1), (1, wide, 1, 1), (), (1,))
        other = self.numbers(self.dice.floats(*shape))
        return self.add(self.dice.pick("Add", "Sub", "Mul"), [x, other], self.name()), wide, size

    def pair_of(self, x: str, wide: int, size: int) -> Value:
        high = self.dice.pick(0.7, 1.5, 3.0)
        low = self.dice.pick(0.0, -high, -0.3 * high)
        return self.pair(x, low, high, self.dice.pick(np.uint8, np.int8)), wide, size

    def pool(self, x: str, wide: int, size: int) -> Value | None:
        if size < 4:
            return None
        op = self.dice.pick("MaxPool", "AveragePool")
        at = {"kernel_shape": [2, 2], "strides": [2, 2]}
        return self.add(op, [x], self.name(), **at), wide, size // 2

    def join(self, x: str, wide: int, size: int) -> Value:
        y, other, _ = self.dice.pick(*(v for v in self.values if v[2] == size))
        if other == wide and self.dice.often(0.7):
            return self.add(self.dice.pick("Add", "Mul"), [x, y], self.name()), wide, size
        return self.add("Concat", [x, y], self.name(), axis=1), wide + other, size


def write_graph(path: Path, seed: int, quantized: bool) -> NDArray[np.float32]:
    """An image for the file that is written."""
    dice = Dice(seed)
    graph = Graphs(dice)
    kinds: list[Callable[..., Value | None]] = [graph.convolution] * 2
    kinds += [graph.function, graph.norm, graph.offset, graph.pool, graph.join]
    kinds += [graph.pair_of] * 2 * quantized
    for _ in range(dice.number(4, 10)):
        value = graph.values[-1] if dice.often(0.6) else dice.pick(*graph.values)
        made = dice.pick(*kinds)(*value)
        graph.values += [made] if made else []
    x, wide, _ = graph.values[-1]
    if dice.often():
        flat = graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "mean")], "flat")
        x = graph.add("MatMul", [flat, graph.numbers(dice.floats(wide, 4))], "product")
        graph.add("Add", [x, graph.numbers(dice.floats(4))], "out")
    else:
        graph.add("Relu", [x], "out")
    graph.save(path, "out", 17, dice.pick(("N", 3, "H", "W"), (2, 3, 8, 8)))
    return dice.floats(2, 3, 8, 8)
