// SPDX-License-Identifier: Apache-2.0
#include "ops/layer_op.h"

#include <string>

#include "ops/conv.h"

namespace tops {
namespace {

Weights kind_of(const Attributes& at) {
  const std::string& kind = at.text("kind");
  if (kind == "ternary") return Weights::kTernary;
  if (kind == "int8") return Weights::kInt8;
  if (kind != "float") bad_node(at.op(), "weights 'ternary', 'int8' or 'float'", "'" + kind + "'");
  return Weights::kFloat;
}

const float* vector_of(const Attributes& at, const char* name, int64_t size) {
  if (!at.has(name)) return nullptr;
  const ArrayView& a = at.array(name, 'f');
  if (a.size() != size)
    bad_node(at.op(), std::string(name) + " of " + std::to_string(size) + " values",
             std::to_string(a.size()));
  return static_cast<const float*>(a.data);
}

struct PreparedConv : Prepared {
  PreparedConv(const ConvSpec& spec, const ActivationTensor& in, const ActivationTensor& out)
      : conv(spec, in, out) {}
  int64_t scratch_bytes() const override { return conv.scratch_bytes(); }
  ConvPlan conv;
};

}  // namespace

ConvWeights weights_of(const Attributes& at, int64_t groups) {
  const Weights kind = kind_of(at);
  const std::vector<int64_t> d = at.integers("shape", 4, 1);
  const WeightShape shape{d[0], d[1], d[2], d[3], groups};
  check_shape(shape, kind);
  const ArrayView& w = at.array("weights", kind == Weights::kTernary ? 'B'
                                           : kind == Weights::kInt8  ? 'b'
                                                                     : 'f');
  const int64_t channels = kind == Weights::kTernary ? shape.quads()
                           : kind == Weights::kInt8  ? 4 * shape.quads()
                                                     : shape.i;
  const int64_t size = shape.o * shape.r * shape.s * channels;
  if (w.size() != size)
    bad_node(at.op(), "weights of " + std::to_string(size) + " elements", std::to_string(w.size()));
  if (!at.has("scale")) bad_node(at.op(), "a scale an output", "none");
  return {kind,
          w.data,
          shape,
          vector_of(at, "scale", shape.o),
          vector_of(at, "bias", shape.o),
          vector_of(at, "slope", shape.o),
          at.has("sparse") ? static_cast<int>(at.flag("sparse")) : -1};
}

void LayerOp::need_like_kinds(const Attributes& at, const ValueType& x, Weights kind) {
  if (x.is_float != (kind == Weights::kFloat))
    bad_node(at.op(), "integer weights for u8 and float weights for floats",
             std::string(x.is_float ? "floats" : "u8") + " and the other weights");
}

void LayerOp::need_operands(const Attributes& at, const Types& in) const {
  for (size_t i = 1; i < in.size(); ++i)
    if (in[i].channels != layer_->shape.o || in[i].rank != in[0].rank)
      bad_node(at.op(), "a gate and a residual of " + std::to_string(layer_->shape.o) + " channels",
               "rank " + std::to_string(in[i].rank) + " with " + std::to_string(in[i].channels));
}

int64_t LayerOp::macs(const Shape& out) const {
  const WeightShape& w = layer_->shape;
  return out.n * out.h * out.w * w.o * w.r * w.s * w.i;
}

std::unique_ptr<Prepared> LayerOp::prepare(const PlannedNode& node, Rows of) const {
  const int64_t rows = of.end - of.begin;
  const bool below_top = of.begin > 0 && node.row_pairs() == Pairs::kOdd;
  ActivationTensor in = node.in(0), out = node.out();
  const LayerWeights& l = *layer_;
  const auto operand = [&](size_t i) { return i ? node.operand(i) : Operand{}; };
  ConvSpec spec{l.view(), l.scale.data()};
  spec.bias = l.bias.data();
  spec.slope = l.slope.empty() ? nullptr : l.slope.data();
  spec.x_zero_point = in.is_float ? 0 : node.in_type(0).zero_point;
  spec.window = window_;
  spec.requantize = requantize_;
  spec.residual = operand(residual(node.inputs()));
  spec.gate = operand(gate());
  spec.row_filter = l.row_filter;
  spec.pairs = below_top ? Pairs::kEven : node.row_pairs();
  if (node.streaming()) {  // the padding is there, as rows like others
    const Rows read = rows_read(0, {0, rows}, in.h, out.h);
    in = in.strip(read.end - read.begin);
    out = out.strip(rows);
    spec.window.pad_h = spec.window.more_h = 0;
  }
  return std::make_unique<PreparedConv>(spec, in, out);
}

void LayerOp::run_conv(const NodeRun& node) const {
  const ConvPlan& conv = static_cast<const PreparedConv*>(node.prepared())->conv;
  const ActivationTensor& out = node.out();
  // Address of row `first` of input i.
  const auto at = [&](size_t i, int64_t first) -> const uint8_t* {
    const ActivationTensor& g = node.in(i);
    return node.x(i) + (node.streaming() ? (first + g.margin) * g.pitch * 4 : 0);
  };
  const auto operand = [&](size_t i) { return i ? at(i, node.rows.begin) : nullptr; };
  const uint8_t* const x = at(0, rows_read(0, node.rows, node.in(0).h, out.h).begin);
  uint8_t* const y =
      node.y() + (node.streaming() ? (node.rows.begin + out.margin) * out.pitch * 4 : 0);
  conv.run(x, y, operand(residual(node.inputs())), node.scratch(), operand(gate()));
  if (node.streaming()) fill_margins(out, node.rows, node.y(), halo_value(type_));
}

}  // namespace tops
