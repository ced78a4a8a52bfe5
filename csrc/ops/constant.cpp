// SPDX-License-Identifier: Apache-2.0
// Operator constant: the same numbers for every image of the batch.
#include <algorithm>
#include <string>

#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

// Attributes: values, floats [C, H, W]; shape, these sizes; rank.
class Constant : public RowwiseOp {
 public:
  Constant(const Attributes& at, const Types&) : values_(at.floats("values")) {
    const std::vector<int64_t> shape = at.integers("shape", 3, 1);
    type_.rank = static_cast<int>(at.integer("rank", 2, 4));
    type_.channels = shape[0];
    h_ = shape[1];
    w_ = shape[2];
    const bool fits = (type_.rank == 4 || h_ == 1) && (type_.rank > 2 || w_ == 1);
    if (!fits || checked_mul(checked_mul(shape[0], h_), w_) != static_cast<int64_t>(values_.size()))
      bad_node(at.op(), "as many values as the shape has, whose sizes suit the rank",
               std::to_string(values_.size()) + " of rank " + std::to_string(type_.rank));
  }

  Shape infer(const Shapes& inputs) const override { return {inputs[0].n, type_.channels, h_, w_}; }

  bool reads(size_t) const override { return false; }
  bool reads_callers_array() const override { return true; }

  void run(const NodeRun& node) const override {
    const ActivationTensor& out = node.out();
    float* const y = reinterpret_cast<float*>(node.y());
    for_rows(out, node.rows, [&](int64_t quad, int64_t n, int64_t row) {
      for (int64_t c = quad * 4; c < std::min(quad * 4 + 4, out.channels); ++c) {
        const float* const from = values_.data() + (c * h_ + row) * w_;
        std::copy(from, from + w_, y + c * out.channel_stride + out.packet(n, row, 0));
      }
    });
    fill_all_halos(out, node.rows, node.y(), 0);
  }

 private:
  std::vector<float> values_;
  int64_t h_ = 1, w_ = 1;
};

const RegisterOp<Constant> kConstant("constant", 1);

}  // namespace
}  // namespace tops
