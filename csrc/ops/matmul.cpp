// SPDX-License-Identifier: Apache-2.0
// Operator matmul: products of two values of tokens, group by group.
#include <algorithm>
#include <string>

#include "isa/isa.h"
#include "ops/value_product.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"
#include "tensor/scratch.h"

namespace tops {
namespace {

// Of the first operand, read again for every block of outputs: what a second-level cache of 512 KB
// holds beside weights and outputs.
constexpr int64_t kCachedInput = 384 * 1024;

// Attributes: groups; tokens, M of the second operand; transpose; scale. Transposed, channel
// g * M + j of the result is the product of the first operand with token j of the second, over the
// channels of group g; else channel g * D + d with its channel, over its tokens.
class Matmul : public OpKernel {
 public:
  Matmul(const Attributes& at, const Types& in)
      : groups_(at.integer("groups", 1)),
        tokens_(at.integer("tokens", 1)),
        transpose_(at.flag("transpose")),
        scale_(at.number("scale")) {
    for (const ValueType& x : in)
      if (x.rank != 3 || !x.is_float || x.channels == 0 || x.channels % groups_)
        bad_node(at.op(), "tokens, floats, of channels divisible by " + std::to_string(groups_),
                 std::to_string(x.channels) + " channels of rank " + std::to_string(x.rank));
    const int64_t wanted = transpose_ ? in[1].channels : checked_mul(groups_, tokens_);
    if (in[0].channels != wanted)
      bad_node(at.op(), std::to_string(wanted) + " channels", std::to_string(in[0].channels));
    depth_ = in[0].channels / groups_;
    type_ = in[0];
    type_.channels = transpose_ ? checked_mul(groups_, tokens_) : in[1].channels;
  }

  Shape infer(const Shapes& inputs) const override {
    if (inputs[1].w != tokens_)
      bad_size(std::to_string(tokens_) + " tokens", std::to_string(inputs[1].w),
               "Use the image size of compile.");
    return {inputs[0].n, type_.channels, 1, inputs[0].w};
  }

  int64_t macs(const Shape& out) const override { return out.n * out.channels * out.w * depth_; }

  void run(const NodeRun& node) const override;

 private:
  int64_t groups_, tokens_, depth_;  // depth: terms of a sum
  bool transpose_;
  float scale_;
};

void Matmul::run(const NodeRun& node) const {
  const ActivationTensor &a = node.in(0), &b = node.in(1), &out = node.out();
  const int64_t outputs = type_.channels / groups_, pixels = out.w;
  const int64_t step = 3 * kernels().lanes;
  const int64_t chunk = std::max<int64_t>(1, kCachedInput / (4 * depth_ * step)) * step;
  const int64_t chunks = divide_up(pixels, chunk), blocks = divide_up(outputs, kBlock);
  const int64_t along = transpose_ ? b.channel_stride : 1,
                across = transpose_ ? 1 : b.channel_stride;
  const ValueProduct product(depth_, a.channel_stride, out.channel_stride, pixels, scale_);
  const float *const left = reinterpret_cast<const float*>(node.x(0)),
                     *const right = reinterpret_cast<const float*>(node.x(1));
  float* const made = reinterpret_cast<float*>(node.y());
  const int64_t work = out.n * type_.channels * depth_ * (pixels / 16 + 1);
  // All outputs of a chunk, then the next: its input stays in the cache.
  parallel_for(out.n * groups_ * chunks * blocks, work, [&](int64_t i, int) {
    const int64_t first = i % blocks * kBlock, pixel = i / blocks % chunks * chunk;
    const int64_t group = i / (blocks * chunks) % groups_, n = i / (blocks * chunks * groups_);
    const int64_t count = std::min(kBlock, outputs - first);
    float* const panel = reinterpret_cast<float*>(thread_scratch(depth_ * kBlock * 4));
    const int64_t b_channels = transpose_ ? depth_ : outputs;
    const float* const weights =
        right + group * b_channels * b.channel_stride + b.packet(n, 0, 0) + first * across;
    pack_panel({weights, along, across}, depth_, count, panel);
    product.run(left + group * depth_ * a.channel_stride + a.packet(n, 0, 0), panel, count,
                made + (group * outputs + first) * out.channel_stride + out.packet(n, 0, 0), pixel,
                std::min(pixel + chunk, pixels));
  });
  fill_all_halos(out, node.rows, node.y(), 0);
}

const RegisterOp<Matmul> kMatmul("matmul", 2);

}  // namespace
}  // namespace tops
