// SPDX-License-Identifier: Apache-2.0
// Operator conv2d: a convolution, y = sigmoid(y) * gate where it has a gate, then the residual is
// added.
#include <algorithm>
#include <string>

#include "ops/layer_op.h"
#include "program/registry.h"

namespace tops {
namespace {

class Conv2d : public LayerOp {
 public:
  Conv2d(const Attributes& at, const Types& in) {
    need_image(at, in[0]);
    std::tie(window_.stride_h, window_.stride_w) = at.pair("stride", 1);
    std::tie(window_.pad_h, window_.pad_w) = at.pair("padding", 0);
    std::tie(window_.more_h, window_.more_w) = at.pair("more_padding", 0);
    std::tie(window_.dil_h, window_.dil_w) = at.pair("dilation", 1);
    gated_ = at.flag("gate");
    const ConvWeights w = weights_of(at, at.integer("groups", 1));
    if (in[0].channels != w.shape.channels())
      bad_node(at.op(), std::to_string(w.shape.channels()) + " channels",
               std::to_string(in[0].channels));
    if (in.size() > (gated_ ? 3 : 2) || (gated_ && in.size() < 2))
      bad_node(at.op(), "x, a gate if it has one, and at most one residual",
               std::to_string(in.size()) + " inputs");
    need_like_kinds(at, in[0], w.kind);
    layer_ = std::make_unique<const LayerWeights>(w, LayerWeights::Layer::kConv,
                                                  in[0].is_float ? nullptr : &window_);
    need_operands(at, in);
    requantize_ = clamped_output_of(at, in[0]);
    type_.channels = w.shape.o;
    type_ = with_output(type_, requantize_);
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    const WeightShape& f = layer_->shape;
    const Window& w = window_;
    const Shape made{x.n, f.o, window_out(x.h + w.more_h, f.r, w.stride_h, w.pad_h, w.dil_h),
                     window_out(x.w + w.more_w, f.s, w.stride_w, w.pad_w, w.dil_w)};
    for (size_t i = 1; i < inputs.size(); ++i) need_same_size(made, inputs[i]);
    return made;
  }

  void run(const NodeRun& node) const override { run_conv(node); }

  bool streams(const Shapes&) const override { return true; }

  // Of a gate and a residual, the rows that it makes.
  Rows rows_read(size_t i, Rows rows, int64_t, int64_t) const override {
    return i ? rows : rows_of_windows(window_, layer_->shape.r, rows);
  }

  double smooth_end(size_t i, double end, int64_t in_height, int64_t out_height) const override {
    return i ? end : OpKernel::smooth_end(i, end, in_height, out_height);
  }

  int64_t margin() const override { return window_.pad_h + window_.more_h; }

  RowPairing row_pairing(bool odd_input) const override {
    if (window_.stride_h != 1) return {};
    const int64_t below = window_.dil_h * (layer_->shape.r - 1) - window_.pad_h;
    const bool odd = odd_input != (below % 2 != 0);
    if (!by_row_pairs(layer_->view(), window_)) return {odd, Pairs::kNone};
    return {odd, odd ? Pairs::kOdd : Pairs::kEven};
  }

  int64_t halo() const override {
    const bool strided = window_.stride_h > 1 || window_.stride_w > 1;
    return strided ? 0 : std::max(margin(), window_.pad_w + window_.more_w);
  }
};

const RegisterOp<Conv2d> kConv2d("conv2d", 1, 3);

}  // namespace
}  // namespace tops
