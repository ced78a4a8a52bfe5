// SPDX-License-Identifier: Apache-2.0
// Operator linear: rows of numbers, or the tokens of rank 3, times a matrix. Few rows are
// multiplied row by row (ops/linear.h), many as a convolution of as many pixels.
#include <algorithm>
#include <cstring>
#include <string>

#include "base/scalar_math.h"
#include "ops/layer_op.h"
#include "ops/linear.h"
#include "program/registry.h"

namespace tops {
namespace {

// Adds outputs [begin, end) of row i of the residual.
void add_residual(const ActivationTensor& g, const Operand& residual, const uint8_t* r, int64_t i,
                  int64_t begin, int64_t end, float* y) {
  for (int64_t o = begin; o < end; ++o) {
    float v;
    if (residual.is_float)
      std::memcpy(&v, r + (o * g.channel_stride + i) * 4, 4);
    else
      v = dequantized(r[((o / 4) * g.channel_stride + i) * 4 + o % 4], residual.scale,
                      residual.zero_point);
    y[o] = y[o] + v;
  }
}

void store_codes(const ActivationTensor& g, const Epilogue& e, const float* y, int64_t i,
                 int64_t begin, int64_t end, uint8_t* to) {
  for (int64_t o = begin; o < end; ++o)
    to[((o / 4) * g.channel_stride + i) * 4 + o % 4] = to_code(y[o], e);
}

// Rows of a matrix that a value holds.
int64_t rows_of(const ActivationTensor& g) { return g.n * g.h * g.w; }

class Linear : public LayerOp {
 public:
  Linear(const Attributes& at, const Types& in) {
    if (in[0].rank == 4) bad_node(at.op(), "rows [N, C] or tokens [N, L, C]", "an image");
    const ConvWeights w = weights_of(at, 1);
    if (w.shape.r != 1 || w.shape.s != 1)
      bad_node(at.op(), "weights [O, 1, 1, I]", "filters of several taps");
    if (in[0].channels && in[0].channels != w.shape.i)
      bad_node(at.op(), std::to_string(w.shape.i) + " features", std::to_string(in[0].channels));
    const bool weight_only = in[0].is_float && w.kind != Weights::kFloat;
    if (!weight_only) need_like_kinds(at, in[0], w.kind);
    if (w.slope) bad_node(at.op(), "no slope", "one");
    layer_ = std::make_unique<const LayerWeights>(
        w, weight_only ? LayerWeights::Layer::kWeightOnly : LayerWeights::Layer::kLinear, nullptr);
    need_operands(at, in);
    requantize_ = clamped_output_of(at, in[0]);
    type_.channels = w.shape.o;
    type_.rank = in[0].rank;
    type_ = with_output(type_, requantize_);
  }

  Shape infer(const Shapes& inputs) const override {
    if (inputs[0].channels != layer_->shape.i)
      bad_size(std::to_string(layer_->shape.i) + " features", std::to_string(inputs[0].channels),
               "Use the image size of compile.");
    return OpKernel::infer(inputs);
  }

  std::unique_ptr<Prepared> prepare(const PlannedNode& node, Rows rows) const override {
    return layer_->use_gemv(rows_of(node.in(0))) ? nullptr : LayerOp::prepare(node, rows);
  }

  void run(const NodeRun& node) const override {
    if (node.prepared())
      run_conv(node);
    else
      run_gemv(node);
  }

  int64_t shared_quads() const override { return layer_->shape.o * divide_up(layer_->shape.i, 4); }

 private:
  void run_gemv(const NodeRun& node) const;
};

void Linear::run_gemv(const NodeRun& node) const {
  const LayerWeights& l = *layer_;
  const ActivationTensor& in = node.in(0);
  const ActivationTensor& g = node.out();
  const int64_t m = rows_of(in);  // row i is packet i: neither side has padding
  uint8_t* const to = node.y();
  // One float row ends up as it is computed.
  const bool direct = g.is_float && g.channel_stride == 1;
  Buffer gathered(m > 1 ? m * in.packets * 4 : 0), floats(direct ? 0 : m * l.shape.o * 4);
  const uint8_t* x = node.x(0);
  if (m > 1) {  // a single row lies there already
    for (int64_t q = 0; q < in.packets; ++q)
      for (int64_t i = 0; i < m; ++i)
        std::memcpy(gathered.data() + (i * in.packets + q) * 4, x + (q * in.channel_stride + i) * 4,
                    4);
    x = gathered.data();
  }
  float* const y = reinterpret_cast<float*>(direct ? to : floats.data());
  const size_t beside = residual(node.inputs());
  const Operand read = beside ? node.operand(beside) : Operand{};
  const Epilogue e = make_epilogue(requantize_, read);
  const auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < m; ++i) {
      float* const row = y + i * l.shape.o;
      if (beside) add_residual(node.in(beside), read, node.x(beside), i, begin, end, row);
      if (g.is_float)
        for (int64_t o = begin; o < end; ++o) row[o] = activate(row[o], e);
      else
        store_codes(g, e, row, i, begin, end, to);
    }
  };
  if (in.is_float) {
    gemv_float(l.weight_rows(), x, false, m, l.scale.data(), l.bias.data(), y);
    finish(0, l.shape.o);
  } else {
    const GemvInput rows_in{x, false, m, in.packets * 4, 1.0f, node.in_type(0).zero_point};
    gemv(l.weight_rows(), rows_in, l.scale.data(), l.bias.data(), y, finish);
  }
  if (g.is_float) {
    if (!direct) tensor_from_nhwc(g, y, to);
    return;
  }
  for (int64_t o = l.shape.o; o % 4; ++o)
    for (int64_t i = 0; i < m; ++i) to[((o / 4) * g.channel_stride + i) * 4 + o % 4] = 0;
}

const RegisterOp<Linear> kLinear("linear", 1, 2);

}  // namespace
}  // namespace tops
