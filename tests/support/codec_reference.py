# SPDX-License-Identifier: Apache-2.0
"""The decoder of docs/formats.md again, in plain Python, written from that page alone. Slow."""

from __future__ import annotations

WORD, SCALE, SLOTS = 2**32, 2**16, 2**14


class BitModel:
    def __init__(self):
        self.p, self.n = 2**31, 0

    def yes(self):
        return min(max(self.p // SCALE, 16), 65520)

    def update(self, yes):
        rate = 131072 // (2 * self.n + 3)
        self.n = min(self.n + 1, 1024)
        if yes:
            self.p += (WORD - 1 - self.p) * rate // SCALE
        else:
            self.p -= self.p * rate // SCALE

    def loosen(self):
        self.n = min(self.n, 24)


class SymbolModel:
    def __init__(self, size):
        self.counts, self.period = [1] * size, 16
        self.rebuild()

    def rebuild(self):
        if sum(self.counts) > 2**15:
            self.counts = [(count + 1) // 2 for count in self.counts]
        size, total = len(self.counts), sum(self.counts)
        slots = [1 + (SLOTS - size) * count // total for count in self.counts]
        slots[self.counts.index(max(self.counts))] += SLOTS - sum(slots)
        self.intervals, start = [], 0
        for s in slots:
            self.intervals.append((start, 4 * s))
            start += 4 * s
        self.left = self.period

    def update(self, symbol):
        self.counts[symbol] += 2
        self.left -= 1
        if self.left == 0:
            self.period = min(2 * self.period, 512)
            self.rebuild()


class Stream:
    def __init__(self, data):
        self.data, self.at, self.held, self.x = data, 0, 0, 0

    def read(self, count):
        piece = self.data[self.at : self.at + count]
        assert len(piece) == count, "the stream ends early"
        self.at += count
        return int.from_bytes(piece, "little")

    def begin_row(self):
        if self.held == 0:
            self.x = self.read(8)
            assert 2**31 <= self.x < 2**63

    def end_row(self, count):
        self.held += count
        if self.held >= 2**18:
            self.end_block()

    def end_block(self):
        if self.held:
            assert self.x == 2**31, "wrong state at the end of a block"
        self.held = 0

    def take(self, start, freq):
        self.x = freq * (self.x // SCALE) + self.x % SCALE - start
        if self.x < 2**31:
            self.x = self.x * WORD + self.read(4)

    def bit(self, model):
        y = model.yes()
        yes = self.x % SCALE < y
        self.take(*((0, y) if yes else (y, SCALE - y)))
        model.update(yes)
        return yes

    def symbol(self, model):
        position = self.x % SCALE
        symbol = next(
            i for i, (start, freq) in enumerate(model.intervals) if start <= position < start + freq
        )
        self.take(*model.intervals[symbol])
        model.update(symbol)
        return symbol


def decode(payload, specs):
    """[(kind, rows, width), ...] -> one list of rows of signed bytes per tensor."""
    stream = Stream(payload)
    bits = {kind: [BitModel() for _ in range(16)] for kind in ("ternary", "int8")}
    quads = [SymbolModel(3**n - 1) for n in (1, 2, 3, 4)]
    int8 = SymbolModel(256)
    columns: dict = {}
    tensors = []
    for kind, rows, width in specs:
        tensor = []
        if kind == "bytes":
            models = columns.setdefault(width, [SymbolModel(256) for _ in range(width)])
            for _ in range(rows if width else 0):
                stream.begin_row()
                tensor.append([signed(stream.symbol(model)) for model in models])
                stream.end_row(width)
            tensors.append(tensor)
            continue
        for model in bits[kind]:
            model.loosen()
        above = [[0] * -(-width // 4)] * 3
        for _ in range(rows if width else 0):
            stream.begin_row()
            row: list[int] = []
            occupied: list[int] = []
            for q in range(0, width, 4):
                lanes = min(4, width - q)
                before = occupied[-1] if occupied else 0
                context = 8 * before + sum(above[i][q // 4] << i for i in range(3))
                occupied.append(int(stream.bit(bits[kind][context])))
                if not occupied[-1]:
                    row += [0] * lanes
                elif kind == "int8":
                    row += [signed(stream.symbol(int8)) for _ in range(lanes)]
                else:
                    number = stream.symbol(quads[lanes - 1]) + 1
                    row += [(0, 1, -1)[number // 3**k % 3] for k in range(lanes)]
            above = [occupied, *above[:2]]
            tensor.append(row)
            stream.end_row(len(occupied))
        tensors.append(tensor)
    stream.end_block()
    values = sum(rows * width for _, rows, width in specs)
    assert len(payload) == max(stream.at, -(-(values - 2**20) // 1024))
    assert not any(payload[stream.at :])
    return tensors


def signed(byte):
    return byte - 256 * (byte >= 128)
