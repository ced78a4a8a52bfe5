// SPDX-License-Identifier: Apache-2.0
// Operators softmax and layer_norm: over the channels of each pixel, token or row, in floats.
#include <algorithm>
#include <cmath>
#include <string>

#include "program/registry.h"
#include "tensor/for_each_row.h"

namespace tops {
namespace {

class OverChannels : public OpKernel {
 public:
  OverChannels(const Attributes& at, const Types& in) {
    if (!in[0].is_float) bad_node(at.op(), "floats", "u8");
    type_ = in[0];
  }

  bool streams(const Shapes&) const override { return true; }

 protected:
  // Calls body(x, y) with the first channel of each pixel.
  template <class Body>
  static void each_pixel(const NodeRun& node, const Body& body) {
    const ActivationTensor &in = node.in(0), &out = node.out();
    const Rows rows = node.rows;
    const int64_t lines = rows.end - rows.begin;
    const float* const from = reinterpret_cast<const float*>(node.x(0));
    float* const to = reinterpret_cast<float*>(node.y());
    parallel_for(out.n * lines, 16 * vectors_of(out, rows), [&](int64_t line, int) {
      const int64_t image = line / lines, row = rows.begin + line % lines;
      const float* const x = from + in.packet(image, row, 0);
      float* const y = to + out.packet(image, row, 0);
      for (int64_t p = 0; p < out.w; ++p) body(x + p, y + p);
    });
    fill_all_halos(out, rows, node.y(), 0);
  }
};

class Softmax : public OverChannels {
 public:
  using OverChannels::OverChannels;

  void run(const NodeRun& node) const override {
    const int64_t count = node.out().channels, in = node.in(0).channel_stride,
                  out = node.out().channel_stride;
    each_pixel(node, [=](const float* x, float* y) {
      float most = x[0], sum = 0.0f;
      for (int64_t c = 1; c < count; ++c) most = std::max(most, x[c * in]);
      for (int64_t c = 0; c < count; ++c) sum += y[c * out] = std::exp(x[c * in] - most);
      for (int64_t c = 0; c < count; ++c) y[c * out] /= sum;
    });
  }
};

// Attributes: eps; weight and bias, a number a channel.
class LayerNorm : public OverChannels {
 public:
  LayerNorm(const Attributes& at, const Types& in)
      : OverChannels(at, in),
        weight_(at.floats("weight")),
        bias_(at.floats("bias")),
        eps_(at.number("eps")) {
    const auto width = static_cast<int64_t>(weight_.size());
    const bool fits = in[0].channels == 0 || in[0].channels == width;  // 0: infer checks
    if (width == 0 || !fits || bias_.size() != weight_.size() || !(eps_ > 0.0f))
      bad_node(at.op(), "a weight and a bias a channel, and eps > 0",
               std::to_string(width) + " weights, " + std::to_string(bias_.size()) +
                   " biases, eps " + std::to_string(eps_));
    type_.channels = width;
  }

  Shape infer(const Shapes& inputs) const override {
    if (inputs[0].channels != type_.channels)
      bad_size(std::to_string(type_.channels) + " channels", std::to_string(inputs[0].channels),
               "use the image size of compile.");
    return inputs[0];
  }

  void run(const NodeRun& node) const override {
    const int64_t count = node.out().channels, in = node.in(0).channel_stride,
                  out = node.out().channel_stride;
    each_pixel(node, [=](const float* x, float* y) {
      double mean = 0.0, square = 0.0;  // of many channels: float32 sums would lose digits
      for (int64_t c = 0; c < count; ++c) mean += static_cast<double>(x[c * in]);
      mean /= static_cast<double>(count);
      for (int64_t c = 0; c < count; ++c) {
        const double v = static_cast<double>(x[c * in]) - mean;
        square += v * v;
      }
      const double spread =
          std::sqrt(square / static_cast<double>(count) + static_cast<double>(eps_));
      for (int64_t c = 0; c < count; ++c) {
        const double v = (static_cast<double>(x[c * in]) - mean) / spread;
        const auto i = static_cast<size_t>(c);
        y[c * out] = static_cast<float>(v) * weight_[i] + bias_[i];
      }
    });
  }

 private:
  std::vector<float> weight_, bias_;
  float eps_;
};

const RegisterOp<Softmax> kSoftmax("softmax", 1);
const RegisterOp<LayerNorm> kLayerNorm("layer_norm", 1);

}  // namespace
}  // namespace tops
