// SPDX-License-Identifier: Apache-2.0
// Operators crop and pad: rows and columns, or tokens, cut off or put around.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/scalar_math.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

// A number of rows and one of columns.
struct OfAxes {
  int64_t rows, columns;
};

// Attribute of an image's rows and columns, or of tokens, which lie in columns.
OfAxes of_axes(const Attributes& at, const std::string& name, const ValueType& x, int64_t least,
               int64_t rows_of_tokens) {
  if (x.rank == 2) bad_node(at.op(), "an image or tokens", "rows");
  if (x.rank == 3) return {rows_of_tokens, at.integers(name, 1, least)[0]};
  const auto [rows, columns] = at.pair(name, least);
  return {rows, columns};
}

std::string size_of(const Shape& s) { return std::to_string(s.h) + "x" + std::to_string(s.w); }

// Calls body(from, to, row) for these rows of every packet of channels: its first packet in the
// value, and the packets of the channels in the input's image.
template <class Body>
void each_packet_row(const NodeRun& node, const Body& body) {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  parallel_for(out.packets, vectors_of(out, node.rows), [&](int64_t c, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = node.rows.begin; row < node.rows.end; ++row)
        body(x + (c * in.channel_stride + in.packet(n, 0, 0)) * 4,
             y + (c * out.channel_stride + out.packet(n, row, 0)) * 4, row);
  });
}

class Crop : public OpKernel {
 public:
  Crop(const Attributes& at, const Types& in)
      : begin_(of_axes(at, "begin", in[0], 0, 0)), end_(of_axes(at, "end", in[0], 0, 0)) {
    if (at.has("step")) step_ = of_axes(at, "step", in[0], 1, 1);
    type_ = in[0];
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    const int64_t rows = x.h - begin_.rows - end_.rows;
    const int64_t columns = x.w - begin_.columns - end_.columns;
    if (rows < 1 || columns < 1)
      bad_size("a size beyond what is cut off", size_of(x), "Use a larger size.");
    return {x.n, x.channels, divide_up(rows, step_.rows), divide_up(columns, step_.columns)};
  }

  bool streams(const Shapes&) const override { return true; }

  Rows rows_read(size_t, Rows rows, int64_t, int64_t) const override {
    return {begin_.rows + rows.begin * step_.rows, begin_.rows + (rows.end - 1) * step_.rows + 1};
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor &in = node.in(0), &out = node.out();
    each_packet_row(node, [&](const uint8_t* from, uint8_t* to, int64_t row) {
      from += ((begin_.rows + row * step_.rows) * in.pitch + begin_.columns) * 4;
      if (step_.columns == 1) {
        std::memcpy(to, from, static_cast<size_t>(out.w) * 4);
        return;
      }
      for (int64_t p = 0; p < out.w; ++p) std::memcpy(to + p * 4, from + p * step_.columns * 4, 4);
    });
    fill_all_halos(out, node.rows, node.y(), halo_value(type_));
  }

 private:
  OfAxes begin_, end_, step_{1, 1};
};

enum class Mode { kConstant, kReflect, kReplicate, kCircular };

class Pad : public OpKernel {
 public:
  Pad(const Attributes& at, const Types& in)
      : before_(of_axes(at, "before", in[0], 0, 0)), after_(of_axes(at, "after", in[0], 0, 0)) {
    static const char* const names[] = {"constant", "reflect", "replicate", "circular"};
    const auto found = std::find(std::begin(names), std::end(names), at.text("mode"));
    if (found == std::end(names))
      bad_node(at.op(), "mode constant, reflect, replicate or circular", at.text("mode"));
    mode_ = static_cast<Mode>(found - std::begin(names));
    type_ = in[0];
    const float value =
        at.has("value") ? at.number("value") : -std::numeric_limits<float>::infinity();
    if (type_.is_float) {
      std::memcpy(&filling_, &value, 4);
    } else {
      const float inf = std::numeric_limits<float>::infinity();
      filling_ =
          u8_packet(to_code(value, make_epilogue({-inf, inf, type_.scale, type_.zero_point}, {})));
    }
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    const int64_t spare = mode_ == Mode::kReflect ? 1 : 0;
    const int64_t rows = std::max(before_.rows, after_.rows) + spare;
    const int64_t columns = std::max(before_.columns, after_.columns) + spare;
    const bool moves = mode_ == Mode::kReflect || mode_ == Mode::kCircular;
    if (moves && ((type_.rank == 4 && rows > x.h) || columns > x.w))
      bad_size("at least " + std::to_string(rows) + "x" + std::to_string(columns), size_of(x),
               "Use a larger size.");
    return {x.n, x.channels, x.h + before_.rows + after_.rows,
            x.w + before_.columns + after_.columns};
  }

  // Of a circle, the first row reads the last one.
  bool streams(const Shapes&) const override {
    return mode_ != Mode::kCircular || (before_.rows == 0 && after_.rows == 0);
  }

  Rows rows_read(size_t, Rows rows, int64_t in_height, int64_t) const override {
    const Rows read{rows.begin - before_.rows, rows.end - before_.rows};
    if (mode_ == Mode::kConstant || mode_ == Mode::kCircular) return read;
    // Rows above the first are asked of nothing yet.
    const int64_t above = mode_ == Mode::kReflect ? mirrored() : 1;
    const int64_t below = in_height - 1 - (mode_ == Mode::kReflect ? after_.rows : 0);
    return {std::min(read.begin, below), rows.end > 0 ? std::max(read.end, above) : read.end};
  }

  double smooth_end(size_t, double end, int64_t, int64_t) const override {
    const auto before = static_cast<double>(before_.rows);
    if (mode_ != Mode::kReflect) return end - before;
    return std::max(end - before, std::min(end + before, static_cast<double>(mirrored())));
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor &in = node.in(0), &out = node.out();
    std::vector<int64_t> columns;
    for (int64_t p = 0; p < out.w; ++p) columns.push_back(source(p - before_.columns, in.w));
    each_packet_row(node, [&](const uint8_t* from, uint8_t* to, int64_t row) {
      const int64_t line = source(row - before_.rows, in.h);
      if (line < 0) return fill_packets(to, filling_, out.w);
      from += line * in.pitch * 4;
      const auto put = [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          const int64_t column = columns[static_cast<size_t>(p)];
          if (column < 0)
            std::memcpy(to + p * 4, &filling_, 4);
          else
            std::memcpy(to + p * 4, from + column * 4, 4);
        }
      };
      put(0, before_.columns);
      std::memcpy(to + before_.columns * 4, from, static_cast<size_t>(in.w) * 4);
      put(before_.columns + in.w, out.w);
    });
    fill_all_halos(out, node.rows, node.y(), halo_value(type_));
  }

 private:
  // End of the rows that those above the image are made of.
  int64_t mirrored() const { return before_.rows + 1; }

  // Row or column of the input that stands at place i, counted from its first; -1: the filling.
  int64_t source(int64_t i, int64_t size) const {
    if (i >= 0 && i < size) return i;
    switch (mode_) {
      case Mode::kReflect:
        return i < 0 ? -i : 2 * (size - 1) - i;
      case Mode::kReplicate:
        return i < 0 ? 0 : size - 1;
      case Mode::kCircular:
        return i < 0 ? i + size : i - size;
      case Mode::kConstant:
        break;
    }
    return -1;
  }

  OfAxes before_, after_;
  Mode mode_ = Mode::kConstant;
  uint32_t filling_ = 0;
};

const RegisterOp<Crop> kCrop("crop", 1);
const RegisterOp<Pad> kPad("pad", 1);

}  // namespace
}  // namespace tops
