// SPDX-License-Identifier: Apache-2.0
// Operators add, mul and clamp: packet by packet.
#include <string>

#include "isa/isa.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

const float kNoBias[4] = {0.0f, 0.0f, 0.0f, 0.0f};

class Elementwise : public RowwiseOp {
 public:
  Elementwise(const Attributes& at, const Types& in, bool multiply)
      : requantize_(clamped_output_of(at, in[0])), multiply_(multiply) {
    for (const ValueType& other : in)
      if (other.channels != in[0].channels || other.rank != in[0].rank)
        bad_node(at.op(), "inputs of one rank and as many channels", "different ones");
    type_ = with_output(in[0], requantize_);
  }

  bool in_place() const override { return true; }
  void run(const NodeRun& node) const override;

 private:
  Requantize requantize_;
  bool multiply_;
};

void Elementwise::run(const NodeRun& node) const {
  const bool two = node.inputs() > 1;
  const size_t second = two ? 1 : 0;
  const ActivationTensor &a = node.in(0), &b = node.in(second), &g = node.out();
  const ValueType &from = node.in_type(0), &other = node.in_type(second);
  AddArgs args{};
  args.a_float = from.is_float;
  args.b_float = other.is_float;
  args.has_b = two;
  args.float_out = type_.is_float;
  args.a_scale = from.scale;
  args.a_zero_point = from.zero_point;
  args.epilogue = make_epilogue(requantize_, two ? node.operand(1) : Operand{});
  args.epilogue.bias = kNoBias;
  args.multiply = multiply_;
  args.b_spread = two && b.h * b.w == 1 && g.h * g.w > 1;
  uint8_t *const x = node.x(0), *const beside = two ? node.x(1) : nullptr, *const to = node.y();
  const KernelTable& kernel = kernels();
  for_rows(g, node.rows, [&](int64_t quad, int64_t n, int64_t y) {
    const int64_t b_packet = b.packet(n, args.b_spread ? 0 : y, 0);
    kernel.add(args, packets_at(a, x, quad, a.packet(n, y, 0)),
               two ? packets_at(b, beside, quad, b_packet) : Packets{},
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

  // An image of one pixel meets every pixel of the first.
  Shape infer(const Shapes& inputs) const override {
    const bool spread = inputs[1].h == 1 && inputs[1].w == 1;
    return OpKernel::infer(spread ? Shapes{inputs[0]} : inputs);
  }

  bool streams(const Shapes& inputs) const override { return inputs[0].h == inputs[1].h; }
};

const RegisterOp<Add> kAdd("add", 2);
const RegisterOp<Clamp> kClamp("clamp", 1);
const RegisterOp<Mul> kMul("mul", 2);

}  // namespace
}  // namespace tops
