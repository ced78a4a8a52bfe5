// SPDX-License-Identifier: Apache-2.0
// Operators softmax and layer_norm: over the channels of each pixel, token or row, in floats.
#include <algorithm>
#include <cmath>
#include <string>

#include "isa/isa.h"
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
  // Pixels of a row that go together: a cache line of each channel.
  static constexpr int64_t kRun = 16;

  // Calls body(x, y, count) with the first packets of up to kRun pixels next to each other.
  template <class Body>
  void each_run(const NodeRun& node, const Body& body) const {
    const ActivationTensor &in = node.in(0), &out = node.out();
    const Rows rows = node.rows;
    const int64_t lines = rows.end - rows.begin, runs = divide_up(out.w, kRun);
    const float* const from = reinterpret_cast<const float*>(node.x(0));
    uint8_t* const to = node.y();
    parallel_for(out.n * lines * runs, 16 * vectors_of(out, rows), [&](int64_t i, int) {
      const int64_t line = i / runs, first = i % runs * kRun;
      const int64_t image = line / lines, row = rows.begin + line % lines;
      body(from + in.packet(image, row, first), to + out.packet(image, row, first) * 4,
           std::min(kRun, out.w - first));
    });
    fill_all_halos(out, rows, node.y(), halo_value(type_));
  }
};

// Attributes: groups.
class Softmax : public OverChannels {
 public:
  Softmax(const Attributes& at, const Types& in)
      : OverChannels(at, in), groups_(at.integer("groups", 1)) {
    if (groups_ > 1 && (in[0].channels == 0 || in[0].channels % groups_))
      bad_node(at.op(), "channels divisible by " + std::to_string(groups_),
               std::to_string(in[0].channels));
  }

  void run(const NodeRun& node) const override {
    const int64_t count = node.out().channels / groups_, in = node.in(0).channel_stride,
                  out = node.out().channel_stride;
    each_run(node, [=](const float* x, uint8_t* y, int64_t pixels) {
      for (int64_t g = 0; g < groups_; ++g)
        run_group(x + g * count * in, reinterpret_cast<float*>(y) + g * count * out, count, in, out,
                  pixels);
    });
  }

 private:
  // `count` channels, in and out floats apart, of some pixels.
  static void run_group(const float* x, float* y, int64_t count, int64_t in, int64_t out,
                        int64_t pixels) {
    float most[kRun] = {}, sum[kRun] = {};
    std::copy(x, x + pixels, most);
    for (int64_t c = 1; c < count; ++c)
      for (int64_t p = 0; p < pixels; ++p) most[p] = std::max(most[p], x[c * in + p]);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t p = 0; p < pixels; ++p)
        sum[p] += y[c * out + p] = std::exp(x[c * in + p] - most[p]);
    for (int64_t c = 0; c < count; ++c)
      for (int64_t p = 0; p < pixels; ++p) y[c * out + p] /= sum[p];
  }

  int64_t groups_;
};

// Attributes: eps; weight and bias, a number a channel; y.
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
    if (at.has("y")) type_ = with_output(type_, quantization_of(at));
  }

  Shape infer(const Shapes& inputs) const override {
    if (inputs[0].channels != type_.channels)
      bad_size(std::to_string(type_.channels) + " channels", std::to_string(inputs[0].channels),
               "Use the image size of compile.");
    return inputs[0];
  }

  void run(const NodeRun& node) const override {
    const int64_t count = node.out().channels, in = node.in(0).channel_stride,
                  out = node.out().channel_stride;
    const KernelTable& kernel = kernels();
    each_run(node, [&, in, out, count](const float* x, uint8_t* y, int64_t pixels) {
      kernel.layer_norm({x, in, y, out, type_.is_float, 1.0f / type_.scale, type_.zero_point, count,
                         pixels, weight_.data(), bias_.data(), eps_});
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
