// SPDX-License-Identifier: Apache-2.0
// Operator group_norm: floats, normalized over a group of channels and all pixels of an image.
#include <algorithm>
#include <cmath>
#include <string>

#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

// Of numbers less one that is near them, and of their squares.
struct Sums {
  double first = 0.0, square = 0.0;
};

// In double, as sums of many pixels in float32 would lose digits; several at once, since one
// addition waits for the other.
void add_rows(const ActivationTensor& g, const float* image, double near, Sums* sums) {
  constexpr int64_t kLanes = 4;
  double first[kLanes] = {}, square[kLanes] = {};
  for (int64_t row = 0; row < g.h; ++row) {
    const float* const x = image + g.packet(0, row, 0);
    int64_t p = 0;
    for (; p + kLanes <= g.w; p += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) {
        const double v = static_cast<double>(x[p + j]) - near;
        first[j] += v;
        square[j] += v * v;
      }
    for (; p < g.w; ++p) {
      const double v = static_cast<double>(x[p]) - near;
      first[0] += v;
      square[0] += v * v;
    }
  }
  for (int64_t j = 0; j < kLanes; ++j) sums->first += first[j], sums->square += square[j];
}

// Attributes: groups; eps; weight and bias, a number a channel.
class GroupNorm : public OpKernel {
 public:
  GroupNorm(const Attributes& at, const Types& in)
      : groups_(at.integer("groups", 1)),
        weight_(at.floats("weight")),
        bias_(at.floats("bias")),
        eps_(at.number("eps")) {
    need_image(at, in[0]);
    if (!in[0].is_float) bad_node(at.op(), "floats", "u8");
    const int64_t channels = in[0].channels;
    if (channels % groups_ || static_cast<int64_t>(weight_.size()) != channels ||
        weight_.size() != bias_.size() || !(eps_ > 0.0f))
      bad_node(at.op(), "channels that divide by groups, a weight and a bias each, and eps > 0",
               std::to_string(channels) + " channels, " + std::to_string(groups_) + " groups, " +
                   std::to_string(weight_.size()) + " weights, " + std::to_string(bias_.size()) +
                   " biases, eps " + std::to_string(eps_));
    type_ = in[0];
  }

  bool in_place() const override { return true; }

  void run(const NodeRun& node) const override {
    const ActivationTensor& out = node.out();
    parallel_for(out.n * groups_, 4 * vectors_of(out, node.rows), [&](int64_t i, int) {
      const int64_t n = i / groups_, each = out.channels / groups_, first = i % groups_ * each;
      run_group(node, n, first, first + each);
    });
    fill_all_halos(out, node.rows, node.y(), 0);
  }

 private:
  void run_group(const NodeRun& node, int64_t n, int64_t first, int64_t last) const;

  int64_t groups_;
  std::vector<float> weight_, bias_;
  float eps_;
};

// Channels [first, last) of image n.
void GroupNorm::run_group(const NodeRun& node, int64_t n, int64_t first, int64_t last) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const double count = static_cast<double>((last - first) * in.h * in.w);
  const auto channel = [&](int64_t c) {
    return reinterpret_cast<const float*>(node.x(0)) + c * in.channel_stride + n * in.image;
  };
  const double near = static_cast<double>(*(channel(first) + in.packet(0, 0, 0)));
  Sums sums;
  for (int64_t c = first; c < last; ++c) add_rows(in, channel(c), near, &sums);
  const double off = sums.first / count, mean = near + off;
  const double variance = std::max(0.0, sums.square / count - off * off);
  const double spread = std::sqrt(variance + static_cast<double>(eps_));
  const float about = static_cast<float>(mean);
  for (int64_t c = first; c < last; ++c) {
    const double factor = static_cast<double>(weight_[static_cast<size_t>(c)]) / spread;
    // What the mean was rounded by is taken off again.
    const double rest = factor * (static_cast<double>(about) - mean);
    const float a = static_cast<float>(factor),
                b = static_cast<float>(static_cast<double>(bias_[static_cast<size_t>(c)]) + rest);
    for (int64_t row = 0; row < in.h; ++row) {
      const float* const x = channel(c) + in.packet(0, row, 0);
      float* const y =
          reinterpret_cast<float*>(node.y()) + c * out.channel_stride + out.packet(n, row, 0);
      for (int64_t p = 0; p < in.w; ++p) y[p] = (x[p] - about) * a + b;
    }
  }
}

const RegisterOp<GroupNorm> kGroupNorm("group_norm", 1);

}  // namespace
}  // namespace tops
