// SPDX-License-Identifier: Apache-2.0
// Operators add, mul and clamp: packet by packet; of add and mul, axes of size 1 broadcast.
#include <algorithm>
#include <string>

#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"
#include "tensor/scratch.h"

namespace tops {
namespace {

const float kNoBias[4] = {0.0f, 0.0f, 0.0f, 0.0f};

// Does a side of size `in` meet all of `out` numbers?
bool spreads(int64_t in, int64_t out) { return in == 1 && out > 1; }

// An operand, whose axes may be of size 1 where the result's are not.
struct Side {
  const ActivationTensor& g;
  const ValueType& type;
  uint8_t* data;

  // Packets at the first column of a row of the result. One u8 channel for all is copied to `room`,
  // a row of packets.
  Packets at(const ActivationTensor& out, int64_t quad, int64_t n, int64_t y, uint8_t* room) const {
    const int64_t packet = g.packet(n, spreads(g.h, out.h) ? 0 : y, 0);
    if (!spreads(g.channels, out.channels)) return packets_at(g, data, quad, packet);
    Packets found = packets_at(g, data, 0, packet);
    if (g.is_float) {
      for (int j = 1; j < 4; ++j) found.channel[j] = found.channel[0];
      return found;
    }
    for (int64_t i = 0; i < g.w; ++i)
      fill_packets(room + i * 4, u8_packet(found.channel[0][i * 4]), 1);
    return {{room, nullptr, nullptr, nullptr}};
  }
};

class Elementwise : public RowwiseOp {
 public:
  Elementwise(const Attributes& at, const Types& in, bool multiply)
      : requantize_(clamped_output_of(at, in[0])), multiply_(multiply) {
    int64_t channels = in[0].channels;  // 0: known with the size
    for (const ValueType& other : in) {
      const bool fits = channels <= 1 || other.channels <= 1 || other.channels == channels;
      if (!fits || other.rank != in[0].rank)
        bad_node(at.op(), "inputs of one rank and as many channels, or one", "different ones");
      if (channels == 1 || (channels == 0 && other.channels > 1)) channels = other.channels;
    }
    type_ = with_output(in[0], requantize_);
    type_.channels = channels;
  }

  Shape infer(const Shapes& inputs) const override {
    Shape made = inputs[0];
    for (const Shape& other : inputs)
      made = {made.n, std::max(made.channels, other.channels), std::max(made.h, other.h),
              std::max(made.w, other.w)};
    const auto fits = [](int64_t size, int64_t all) { return size == 1 || size == all; };
    for (const Shape& other : inputs) {
      if (!fits(other.h, made.h) || !fits(other.w, made.w)) need_same_size(made, other);
      if (!fits(other.channels, made.channels))
        bad_size(std::to_string(made.channels) + " channels", std::to_string(other.channels),
                 "Use the image size of compile.");
    }
    return made;
  }

  Rows rows_read(size_t, Rows rows, int64_t in_height, int64_t out_height) const override {
    if (spreads(in_height, out_height)) return {0, std::min<int64_t>(rows.end, 1)};
    return rows;
  }

  double smooth_end(size_t, double end, int64_t in_height, int64_t out_height) const override {
    return spreads(in_height, out_height) ? std::min(end, 1.0) : end;
  }

  bool in_place() const override { return true; }
  void run(const NodeRun& node) const override;

 private:
  Requantize requantize_;
  bool multiply_;
};

void Elementwise::run(const NodeRun& node) const {
  const ActivationTensor& g = node.out();
  const bool two = node.inputs() > 1;
  // Both operators are commutative: the second operand is the one whose columns may be one.
  const bool swapped = two && spreads(node.in(0).w, g.w);
  const size_t first = swapped ? 1 : 0, second = two && !swapped ? 1 : 0;
  const Side a{node.in(first), node.in_type(first), node.x(first)};
  const Side b{node.in(second), node.in_type(second), node.x(second)};
  AddArgs args{};
  args.a_float = a.type.is_float;
  args.b_float = b.type.is_float;
  args.has_b = two;
  args.float_out = type_.is_float;
  args.a_scale = a.type.scale;
  args.a_zero_point = a.type.zero_point;
  args.epilogue = make_epilogue(requantize_, two ? node.operand(second) : Operand{});
  args.epilogue.bias = kNoBias;
  args.multiply = multiply_;
  args.b_spread = two && spreads(b.g.w, g.w);
  uint8_t* const to = node.y();
  const KernelTable& kernel = kernels();
  for_rows(g, node.rows, [&](int64_t quad, int64_t n, int64_t y) {
    uint8_t* const room = thread_scratch(g.w * 4 + kSlackBytes);  // one of them at most needs it
    kernel.add(args, a.at(g, quad, n, y, room), two ? b.at(g, quad, n, y, room) : Packets{},
               packets_at(g, to, quad, g.packet(n, y, 0)), g.w);
  });
  fill_all_halos(g, node.rows, to, halo_value(type_));
}

class Add : public Elementwise {
 public:
  Add(const Attributes& at, const Types& in) : Elementwise(at, in, false) {}
};

class Clamp : public Elementwise {
 public:
  Clamp(const Attributes& at, const Types& in) : Elementwise(at, in, false) {
    if (!at.has("clamp")) bad_node(at.op(), "clamp, [lo, hi]", "nothing");
  }
};

class Mul : public Elementwise {
 public:
  Mul(const Attributes& at, const Types& in) : Elementwise(at, in, true) {
    if (in[0].is_float != in[1].is_float) bad_node(at.op(), "two u8 or two floats", "one of each");
  }
};

const RegisterOp<Add> kAdd("add", 2);
const RegisterOp<Clamp> kClamp("clamp", 1);
const RegisterOp<Mul> kMul("mul", 2);

}  // namespace
}  // namespace tops
