// SPDX-License-Identifier: Apache-2.0
// Operator attention: softmax(scale * queries . keys + bias) . values, head by head, on floats or
// on codes. A few queries at a time: their scores with all keys stay in the cache, and no value of
// the program holds them.
#include <algorithm>
#include <string>
#include <vector>

#include "isa/isa.h"
#include "ops/attention_codes.h"
#include "ops/value_product.h"
#include "program/registry.h"
#include "tensor/for_each_row.h"
#include "tensor/scratch.h"

namespace tops {
namespace {

// Of the scores of some queries, which a second-level cache holds beside a panel of keys or values.
constexpr int64_t kScoreBytes = 160 * 1024;

// Sums of products of bytes of so many channels or keys fit 32 bits.
constexpr int64_t kMostSummed = 32768;

// Attributes: heads; tokens, M of the keys; scale; repeats; y. Queries [N, H * K, L], keys
// [N, H * K, M], values [N, H * D, M], all floats or all u8, and up to two biases [N, G * M, L],
// floats: head h adds group h / repeats % G of each.
class Attention : public OpKernel {
 public:
  Attention(const Attributes& at, const Types& in)
      : heads_(at.integer("heads", 1)),
        tokens_(at.integer("tokens", 1)),
        scale_(at.number("scale")) {
    codes_ = !in[0].is_float;
    for (size_t i = 0; i < in.size(); ++i) {
      const ValueType& x = in[i];
      const int64_t parts = i > 2 ? tokens_ : codes_ ? 4 * heads_ : heads_;
      if (x.rank != 3 || x.is_float != (i > 2 || !codes_) || !x.channels || x.channels % parts)
        bad_node(at.op(), "tokens of one kind, of channels divisible by " + std::to_string(parts),
                 std::to_string(x.channels) + " channels of rank " + std::to_string(x.rank));
    }
    if (in[1].channels != in[0].channels)
      bad_node(at.op(), std::to_string(in[0].channels) + " channels of keys",
               std::to_string(in[1].channels));
    if (at.has("repeats")) repeats_ = at.integers("repeats", 1);
    repeats_.resize(in.size() - 3, 1);
    for (size_t i = 3; i < in.size(); ++i)
      if (heads_ % checked_mul(in[i].channels / tokens_, repeats_[i - 3]))
        bad_node(at.op(), "a bias of groups of " + std::to_string(tokens_) + " channels",
                 std::to_string(in[i].channels));
    depth_ = in[0].channels / heads_;
    width_ = in[2].channels / heads_;
    if (codes_ && std::max(depth_, tokens_) > kMostSummed)
      bad_node(at.op(), "at most " + std::to_string(kMostSummed) + " tokens and channels of a head",
               std::to_string(tokens_) + " and " + std::to_string(depth_));
    type_ = in[0];
    type_.channels = in[2].channels;
    type_ = with_output(type_, output_of(at, in[0]));
  }

  Shape infer(const Shapes& inputs) const override {
    const char* const to_do = "Use the image size of compile.";
    for (size_t i = 1; i < 3; ++i)
      if (inputs[i].w != tokens_)
        bad_size(std::to_string(tokens_) + " tokens", std::to_string(inputs[i].w), to_do);
    for (size_t i = 3; i < inputs.size(); ++i)
      if (inputs[i].w != inputs[0].w)
        bad_size(std::to_string(inputs[0].w) + " tokens of the bias", std::to_string(inputs[i].w),
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
  void run_floats(const NodeRun& node) const;
  void run_codes(const NodeRun& node) const;
  // Calls body(part) for every `chunk` queries of every head and image.
  template <class Body>
  void each_part(const NodeRun& node, int64_t chunk, const Body& body) const;
  // The first channel of a head, `channels` of each, at a token.
  static float* at(const ActivationTensor& x, uint8_t* data, const Part& part, int64_t channels,
                   int64_t token) {
    return reinterpret_cast<float*>(data) + part.head * channels * x.channel_stride +
           x.packet(part.n, 0, 0) + token;
  }
  // What is added to the scores of a part: floats, and how many from one key to the next.
  struct Bias {
    const float* data;
    int64_t stride;
  };
  // room: bias_floats(chunk), where two biases are added up.
  Bias bias_of(const NodeRun& node, const Part& part, float* room) const;
  int64_t bias_floats(int64_t chunk) const { return repeats_.size() > 1 ? tokens_ * chunk : 0; }
  void score(const NodeRun& node, const Part& part, const ValueProduct& product, int64_t stride,
             float* scores, float* panel) const;
  void mix(const NodeRun& node, const Part& part, const ValueProduct& product, const float* scores,
           float* panel) const;

  int64_t heads_, tokens_, depth_, width_;  // depth: channels of a query; width: of a value
  float scale_;
  bool codes_;
  std::vector<int64_t> repeats_;  // of every bias
};

Attention::Bias Attention::bias_of(const NodeRun& node, const Part& part, float* room) const {
  Bias found{nullptr, 0};
  for (size_t i = 3; i < node.inputs(); ++i) {
    const ActivationTensor& x = node.in(i);
    Part group = part;
    group.head = part.head / repeats_[i - 3] % (x.channels / tokens_);
    const float* const more = at(x, node.x(i), group, tokens_, part.begin);
    if (!found.data) {
      found = {more, x.channel_stride};
      continue;
    }
    const int64_t n = part.end - part.begin;
    for (int64_t m = 0; m < tokens_; ++m)
      for (int64_t q = 0; q < n; ++q)
        room[m * n + q] = found.data[m * found.stride + q] + more[m * x.channel_stride + q];
    found = {room, n};
  }
  return found;
}

// scores[m][q]: products of keys and queries.
void Attention::score(const NodeRun& node, const Part& part, const ValueProduct& product,
                      int64_t stride, float* scores, float* panel) const {
  const ActivationTensor &q = node.in(0), &k = node.in(1);
  const float* const x = at(q, node.x(0), part, depth_, part.begin);
  for (int64_t m = 0; m < tokens_; m += kBlock) {
    const int64_t count = std::min(kBlock, tokens_ - m);
    pack_panel({at(k, node.x(1), part, depth_, m), k.channel_stride, 1}, depth_, count, panel);
    product.run_vectors(x, panel, count, scores + m * stride, part.end - part.begin);
  }
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

// As many queries in every chunk, as each packs all keys and values.
int64_t chunk_of(int64_t queries, int64_t tokens, int64_t lanes) {
  const int64_t most = std::max<int64_t>(1, kScoreBytes / (4 * tokens * lanes)) * lanes;
  return divide_up(divide_up(queries, divide_up(queries, most)), lanes) * lanes;
}

template <class Body>
void Attention::each_part(const NodeRun& node, int64_t chunk, const Body& body) const {
  const ActivationTensor& out = node.out();
  const int64_t chunks = divide_up(out.w, chunk);
  const int64_t work = macs({out.n, out.channels, 1, out.w}) / 16;
  parallel_for(out.n * heads_ * chunks, work, [&](int64_t i, int) {
    const int64_t c = i % chunks;
    body(Part{i / (chunks * heads_), i / chunks % heads_, c * chunk,
              std::min(c * chunk + chunk, out.w)});
  });
  fill_all_halos(out, node.rows, node.y(), halo_value(type_));
}

void Attention::run(const NodeRun& node) const {
  if (codes_)
    run_codes(node);
  else
    run_floats(node);
}

void Attention::run_floats(const NodeRun& node) const {
  const ActivationTensor &q = node.in(0), &out = node.out();
  const KernelTable& kernel = kernels();
  const int64_t lanes = kernel.lanes, chunk = chunk_of(out.w, tokens_, lanes);
  // Rows of scores that are a power of two apart would share few sets of the cache.
  const int64_t stride = chunk + lanes;
  const int64_t score_bytes = tokens_ * stride * 4 + kSlackBytes,
                panel_bytes = std::max(depth_, tokens_) * kBlock * 4;
  const int64_t last = out.w - (divide_up(out.w, chunk) - 1) * chunk;
  const ValueProduct by_keys(depth_, q.channel_stride, stride, chunk, 1.0f),
      by_values(tokens_, stride, out.channel_stride, chunk, 1.0f),
      of_last(tokens_, stride, out.channel_stride, last, 1.0f);
  const int64_t bias_bytes = bias_floats(chunk) * 4;
  each_part(node, chunk, [&](const Part& part) {
    uint8_t* const scratch = thread_scratch(score_bytes + panel_bytes + bias_bytes);
    float *const panel = reinterpret_cast<float*>(scratch),
                 *const room = reinterpret_cast<float*>(scratch + panel_bytes),
                 *const scores = reinterpret_cast<float*>(scratch + panel_bytes + bias_bytes);
    score(node, part, by_keys, stride, scores, panel);
    const Bias bias = bias_of(node, part, room);
    kernel.softmax_rows(
        {scores, tokens_, stride, part.end - part.begin, scale_, bias.data, bias.stride});
    mix(node, part, part.end < out.w ? by_values : of_last, scores, panel);
  });
}

void Attention::run_codes(const NodeRun& node) const {
  const ActivationTensor& out = node.out();
  const int64_t chunk = chunk_of(out.w, tokens_, kernels().lanes);
  const CodeAttention products({tokens_, depth_ / 4, width_ / 4}, chunk);
  const auto head_of = [&](size_t i, const Part& part, int64_t packets, int64_t token) {
    const ActivationTensor& x = node.in(i);
    const int64_t at = part.head * packets * x.channel_stride + x.packet(part.n, 0, token);
    return CodePackets{node.x(i) + at * 4, x.channel_stride, node.in_type(i).zero_point};
  };
  const ValueType &q = node.in_type(0), &k = node.in_type(1), &v = node.in_type(2);
  const auto factor = static_cast<float>(
      static_cast<double>(scale_) * static_cast<double>(q.scale) * static_cast<double>(k.scale));
  each_part(node, chunk, [&](const Part& part) {
    uint8_t* const scratch = thread_scratch(products.scratch_bytes() + bias_floats(chunk) * 4);
    const int64_t n = part.end - part.begin;
    float* const room = reinterpret_cast<float*>(scratch + products.scratch_bytes());
    const Bias bias = bias_of(node, part, room);
    products.share(head_of(0, part, depth_ / 4, part.begin), head_of(1, part, depth_ / 4, 0), n,
                   factor, bias.data, bias.stride, scratch);
    const int64_t channel = part.head * width_, unit = type_.is_float ? channel : channel / 4;
    MixArgs to{};
    to.n = n;
    to.scale = v.scale;
    to.y = node.y() + (unit * out.channel_stride + out.packet(part.n, 0, part.begin)) * 4;
    to.y_stride = out.channel_stride * 4;
    to.packet_bytes = out.channel_stride * (type_.is_float ? 16 : 4);
    to.float_out = type_.is_float;
    to.inv = 1.0f / type_.scale;
    to.zero_point = type_.zero_point;
    products.mix(head_of(2, part, width_ / 4, 0), to, scratch);
  });
}

const RegisterOp<Attention> kAttention("attention", 3, 5);

}  // namespace
}  // namespace tops
