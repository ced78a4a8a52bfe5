// SPDX-License-Identifier: Apache-2.0
// Operator attention: softmax(scale * queries . keys + bias) . values, head by head. A few queries
// at a time: their scores with all keys stay in the cache, and no value of the program holds them.
#include <algorithm>
#include <string>

#include "isa/isa.h"
#include "ops/value_product.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"
#include "tensor/scratch.h"

namespace tops {
namespace {

// Of the scores of some queries, which a second-level cache holds beside a panel of keys or values.
constexpr int64_t kScoreBytes = 160 * 1024;

// Attributes: heads; tokens, M of the keys; scale. Queries [N, H * K, L], keys [N, H * K, M],
// values [N, H * D, M] and, where there is a fourth input, bias [N, H * M, L].
class Attention : public OpKernel {
 public:
  Attention(const Attributes& at, const Types& in)
      : heads_(at.integer("heads", 1)),
        tokens_(at.integer("tokens", 1)),
        scale_(at.number("scale")) {
    for (const ValueType& x : in)
      if (x.rank != 3 || !x.is_float || x.channels == 0 || x.channels % heads_)
        bad_node(at.op(), "tokens, floats, of channels divisible by " + std::to_string(heads_),
                 std::to_string(x.channels) + " channels of rank " + std::to_string(x.rank));
    if (in[1].channels != in[0].channels)
      bad_node(at.op(), std::to_string(in[0].channels) + " channels of keys",
               std::to_string(in[1].channels));
    if (in.size() > 3 && in[3].channels != checked_mul(heads_, tokens_))
      bad_node(at.op(), std::to_string(heads_ * tokens_) + " channels of the bias",
               std::to_string(in[3].channels));
    depth_ = in[0].channels / heads_;
    width_ = in[2].channels / heads_;
    type_ = in[0];
    type_.channels = in[2].channels;
  }

  Shape infer(const Shapes& inputs) const override {
    const char* const to_do = "Use the image size of compile.";
    for (size_t i = 1; i < 3; ++i)
      if (inputs[i].w != tokens_)
        bad_size(std::to_string(tokens_) + " tokens", std::to_string(inputs[i].w), to_do);
    if (inputs.size() > 3 && inputs[3].w != inputs[0].w)
      bad_size(std::to_string(inputs[0].w) + " tokens of the bias", std::to_string(inputs[3].w),
               to_do);
    return {inputs[0].n, type_.channels, 1, inputs[0].w};
  }

  int64_t macs(const Shape& out) const override {
    return out.n * heads_ * out.w * tokens_ * (depth_ + width_);
  }

  void run(const NodeRun& node) const override;

 private:
  // One head of one image, and the queries [begin, end) of it.
  struct Part {
    int64_t n, head, begin, end;
  };
  // The first channel of a head, `channels` of each, at a token.
  static float* at(const ActivationTensor& x, uint8_t* data, const Part& part, int64_t channels,
                   int64_t token) {
    return reinterpret_cast<float*>(data) + part.head * channels * x.channel_stride +
           x.packet(part.n, 0, 0) + token;
  }
  SoftmaxArgs score(const NodeRun& node, const Part& part, const ValueProduct& product,
                    int64_t stride, float* scores, float* panel) const;
  void mix(const NodeRun& node, const Part& part, const ValueProduct& product, const float* scores,
           float* panel) const;

  int64_t heads_, tokens_, depth_, width_;  // depth: channels of a query; width: of a value
  float scale_;
};

// scores[m][q]: products of keys and queries. Returns what is to be done with them.
SoftmaxArgs Attention::score(const NodeRun& node, const Part& part, const ValueProduct& product,
                             int64_t stride, float* scores, float* panel) const {
  const ActivationTensor &q = node.in(0), &k = node.in(1);
  const float* const x = at(q, node.x(0), part, depth_, part.begin);
  for (int64_t m = 0; m < tokens_; m += kBlock) {
    const int64_t count = std::min(kBlock, tokens_ - m);
    pack_panel({at(k, node.x(1), part, depth_, m), k.channel_stride, 1}, depth_, count, panel);
    product.run_vectors(x, panel, count, scores + m * stride, part.end - part.begin);
  }
  SoftmaxArgs args{scores, tokens_, stride, part.end - part.begin, scale_, nullptr, 0};
  if (node.inputs() > 3) {
    args.bias = at(node.in(3), node.x(3), part, tokens_, part.begin);
    args.bias_stride = node.in(3).channel_stride;
  }
  return args;
}

void Attention::mix(const NodeRun& node, const Part& part, const ValueProduct& product,
                    const float* scores, float* panel) const {
  const ActivationTensor &v = node.in(2), &out = node.out();
  for (int64_t d = 0; d < width_; d += kBlock) {
    const int64_t count = std::min(kBlock, width_ - d);
    const float* const values = at(v, node.x(2), part, width_, 0) + d * v.channel_stride;
    pack_panel({values, 1, v.channel_stride}, tokens_, count, panel);
    float* const y = at(out, node.y(), part, width_, part.begin) + d * out.channel_stride;
    product.run(scores, panel, count, y, 0, part.end - part.begin);
  }
}

void Attention::run(const NodeRun& node) const {
  const ActivationTensor &q = node.in(0), &out = node.out();
  const KernelTable& kernel = kernels();
  const int64_t queries = out.w, lanes = kernel.lanes;
  const int64_t most = std::max<int64_t>(1, kScoreBytes / (4 * tokens_ * lanes)) * lanes;
  // As many queries in every chunk, as each packs all keys and values.
  const int64_t share = divide_up(queries, divide_up(queries, most));
  const int64_t chunk = divide_up(share, lanes) * lanes, chunks = divide_up(queries, chunk);
  // Rows of scores that are a power of two apart would share few sets of the cache.
  const int64_t stride = chunk + lanes;
  const int64_t score_bytes = tokens_ * stride * 4 + kSlackBytes,
                panel_bytes = std::max(depth_, tokens_) * kBlock * 4;
  const int64_t last = queries - (chunks - 1) * chunk;
  const ValueProduct by_keys(depth_, q.channel_stride, stride, chunk, 1.0f),
      by_values(tokens_, stride, out.channel_stride, chunk, 1.0f),
      of_last(tokens_, stride, out.channel_stride, last, 1.0f);
  const int64_t work = macs({out.n, out.channels, 1, out.w}) / 16;
  parallel_for(out.n * heads_ * chunks, work, [&](int64_t i, int) {
    const int64_t c = i % chunks;
    const Part part{i / (chunks * heads_), i / chunks % heads_, c * chunk,
                    std::min(c * chunk + chunk, queries)};
    uint8_t* const scratch = thread_scratch(score_bytes + panel_bytes);
    float *const panel = reinterpret_cast<float*>(scratch), *const scores =
                                                                reinterpret_cast<float*>(
                                                                    scratch + panel_bytes);
    kernel.softmax_rows(score(node, part, by_keys, stride, scores, panel));
    mix(node, part, c + 1 < chunks ? by_values : of_last, scores, panel);
  });
  fill_all_halos(out, node.rows, node.y(), 0);
}

const RegisterOp<Attention> kAttention("attention", 3, 4);

}  // namespace
}  // namespace tops
