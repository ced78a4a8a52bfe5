// SPDX-License-Identifier: Apache-2.0
// Operator matmul: products of two values of tokens, group by group. The second operand of a group
// becomes the weights of a dense convolution over the tokens of the first one, whose kernels do the
// rest.
#include <algorithm>
#include <limits>
#include <string>

#include "isa/isa.h"
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
  void pack(const ActivationTensor& b, const float* group, int64_t first, int64_t outputs,
            float* panel) const;

  int64_t groups_, tokens_, depth_;  // depth: terms of a sum
  bool transpose_;
  float scale_;
};

// The weights of outputs [first, first + kBlock) of a group, [depth][kBlock]; 0 beyond `outputs`.
void Matmul::pack(const ActivationTensor& b, const float* group, int64_t first, int64_t outputs,
                  float* panel) const {
  const int64_t count = std::min(kBlock, outputs - first);
  const int64_t along = transpose_ ? b.channel_stride : 1,
                across = transpose_ ? 1 : b.channel_stride;
  for (int64_t k = 0; k < depth_; ++k, panel += kBlock) {
    for (int64_t j = 0; j < count; ++j) panel[j] = group[k * along + (first + j) * across];
    std::fill(panel + count, panel + kBlock, 0.0f);
  }
}

void Matmul::run(const NodeRun& node) const {
  const ActivationTensor &a = node.in(0), &b = node.in(1), &out = node.out();
  const int64_t outputs = type_.channels / groups_, pixels = out.w;
  const KernelTable& kernel = kernels();
  const int64_t step = 3 * kernel.lanes;
  const int64_t chunk = std::max<int64_t>(1, kCachedInput / (4 * depth_ * step)) * step;
  const int64_t chunks = divide_up(pixels, chunk), blocks = divide_up(outputs, kBlock);
  std::vector<int64_t> offsets(static_cast<size_t>(depth_));
  for (int64_t k = 0; k < depth_; ++k) offsets[static_cast<size_t>(k)] = k * a.channel_stride * 4;
  const std::vector<uint8_t> valid(static_cast<size_t>(pixels / 8 + 9), 0xff);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float scale[kChannelPad] = {scale_, scale_, scale_, scale_, scale_, scale_, scale_, scale_};
  const float bias[kChannelPad] = {};
  const int32_t start[kChannelPad] = {};
  ConvArgs args{};
  args.pixels = pixels;
  args.weights = Weights::kFloat;
  args.dense.offsets = offsets.data();
  args.dense.k = depth_;
  args.dense.group_blocks = 1;
  args.epilogue = make_epilogue({-kInf, kInf, 0.0f, 0}, {});
  args.epilogue.start = start;
  args.epilogue.scale = scale;
  args.epilogue.bias = bias;
  args.y.channel_stride = out.channel_stride * 4;
  args.y.is_float = true;
  args.y.valid = valid.data();
  const float *const left = reinterpret_cast<const float*>(node.x(0)),
                     *const right = reinterpret_cast<const float*>(node.x(1));
  const int64_t work = out.n * type_.channels * depth_ * (pixels / 16 + 1);
  // All outputs of a chunk, then the next: its input stays in the cache.
  parallel_for(out.n * groups_ * chunks * blocks, work, [&](int64_t i, int) {
    const int64_t first = i % blocks * kBlock, pixel = i / blocks % chunks * chunk;
    const int64_t group = i / (blocks * chunks) % groups_, n = i / (blocks * chunks * groups_);
    float* const panel = reinterpret_cast<float*>(thread_scratch(depth_ * kBlock * 4));
    const int64_t b_channels = transpose_ ? depth_ : outputs;
    pack(b, right + group * b_channels * b.channel_stride + b.packet(n, 0, 0), first, outputs,
         panel);
    ConvArgs own = args;
    own.x = reinterpret_cast<const uint8_t*>(left + group * depth_ * a.channel_stride +
                                             a.packet(n, 0, 0));
    own.outputs = std::min(kBlock, outputs - first);
    own.dense.panels = reinterpret_cast<const uint8_t*>(panel);
    own.y.data = node.y() + (group * outputs + first) * out.channel_stride * 4;
    own.y.origin = out.packet(n, 0, 0);
    kernel.conv_dense(own, 0, 1, pixel, std::min(pixel + chunk, pixels), nullptr);
  });
  fill_all_halos(out, node.rows, node.y(), 0);
}

const RegisterOp<Matmul> kMatmul("matmul", 2);

}  // namespace
}  // namespace tops
