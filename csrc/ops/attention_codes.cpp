// SPDX-License-Identifier: Apache-2.0
// Both products are dense convolutions over the pixels of queries, whose 8-bit weights are made of
// keys and of values less 128.
#include "ops/attention_codes.h"

#include <algorithm>
#include <cstring>

#include "isa/isa.h"
#include "tensor/tensor.h"

namespace tops {
namespace {

// Four codes less 128.
constexpr uint32_t kSigned = 0x80808080u;

uint32_t packet_at(const uint8_t* p, int64_t i) {
  uint32_t v;
  std::memcpy(&v, p + i * 4, 4);
  return v ^ kSigned;
}

int32_t sum_of(uint32_t quad) {
  int32_t sum = 0;
  for (int shift = 0; shift < 32; shift += 8) sum += static_cast<int8_t>(quad >> shift & 0xff);
  return sum;
}

// Keys [first, first + count) as a panel [depth][kBlock] of quads of channels; 0 beyond them.
void pack_keys(const CodePackets& keys, int64_t depth, int64_t first, int64_t count, uint8_t* panel,
               int32_t sums[kBlock]) {
  std::fill(sums, sums + kBlock, 0);
  for (int64_t c = 0; c < depth; ++c, panel += kBlock * 4) {
    uint32_t quads[kBlock] = {};
    const uint8_t* const from = keys.data + (c * keys.stride + first) * 4;
    for (int64_t j = 0; j < count; ++j) quads[j] = packet_at(from, j);
    for (int64_t j = 0; j < kBlock; ++j) sums[j] += sum_of(quads[j]);
    std::memcpy(panel, quads, sizeof(quads));
  }
}

// Rows of four packets to their columns.
void transpose(uint32_t (&x)[4]) {
  constexpr uint32_t kEven = 0x00ff00ffu;
  const uint32_t a = (x[0] & kEven) | (x[1] & kEven) << 8,
                 b = (x[0] >> 8 & kEven) | (x[1] & ~kEven),
                 c = (x[2] & kEven) | (x[3] & kEven) << 8,
                 d = (x[2] >> 8 & kEven) | (x[3] & ~kEven);
  x[0] = (a & 0xffffu) | c << 16;
  x[1] = (b & 0xffffu) | d << 16;
  x[2] = a >> 16 | (c & 0xffff0000u);
  x[3] = b >> 16 | (d & 0xffff0000u);
}

// `packets` packets of values, one or two, as a panel [ceil(keys / 4)][kBlock] of quads of keys; 0
// beyond both.
void pack_values(const CodePackets& values, int64_t keys, int64_t packets, uint8_t* panel,
                 int32_t sums[kBlock]) {
  std::fill(sums, sums + kBlock, 0);
  for (int64_t first = 0; first < keys; first += 4, panel += kBlock * 4) {
    uint32_t quads[2][4] = {};
    for (int64_t b = 0; b < packets; ++b) {
      for (int64_t j = 0; j < std::min<int64_t>(4, keys - first); ++j)
        quads[b][j] = packet_at(values.data + b * values.stride * 4, first + j);
      transpose(quads[b]);
      for (int j = 0; j < 4; ++j) sums[b * 4 + j] += sum_of(quads[b][j]);
    }
    std::memcpy(panel, quads, sizeof(quads));
  }
}

}  // namespace

// Rows of scores that are a power of two apart would share few sets of the cache.
CodeAttention::CodeAttention(const HeadSize& size, int64_t queries)
    : kernel_(kernels()),
      size_(size),
      stride_(divide_up(queries, kernel_.lanes) * kernel_.lanes + kernel_.lanes) {}

int32_t* CodeAttention::totals(uint8_t* scratch) const {
  return scores(scratch) + key_quads() * 4 * stride_;
}

// Behind the totals and the sums of kBlock channels.
uint8_t* CodeAttention::panel(uint8_t* scratch) const {
  return reinterpret_cast<uint8_t*>(totals(scratch) + (1 + kBlock) * stride_);
}

int64_t CodeAttention::most_depth() const { return std::max(size_.depth, key_quads()); }

int64_t* CodeAttention::offsets_of(uint8_t* scratch) const {
  return reinterpret_cast<int64_t*>(panel(scratch) + most_depth() * kBlock * 4);
}

int64_t CodeAttention::scratch_bytes() const {
  const int64_t depth = most_depth();
  return (key_quads() * 4 + 1 + kBlock) * stride_ * 4 + depth * (kBlock * 4 + 8) +
         dense_scratch(depth) + kSlackBytes;
}

// y[j] = the panel's channel j times x less its zero point, for n pixels.
void CodeAttention::product(const CodePackets& x, int64_t depth, int64_t outputs,
                            const int32_t* weight_sums, int32_t zero_point, int32_t* y, int64_t n,
                            uint8_t* scratch) const {
  int32_t start[kBlock];
  const int32_t shift = (kernel_.signed_input ? 128 : 0) - zero_point;
  for (int64_t j = 0; j < kBlock; ++j) start[j] = shift * weight_sums[j];
  int64_t* const offsets = offsets_of(scratch);
  for (int64_t k = 0; k < depth; ++k) offsets[k] = k * x.stride * 4;
  ConvArgs args{};
  args.x = x.data;
  args.pixels = n;
  args.outputs = outputs;
  args.weights = Weights::kInt8;
  args.dense.offsets = offsets;
  args.dense.k = depth;
  args.dense.panels = panel(scratch);
  args.dense.group_blocks = 1;
  args.dense.sums_only = true;
  args.epilogue.start = start;
  args.y.data = reinterpret_cast<uint8_t*>(y);
  args.y.channel_stride = stride_ * 4;
  kernel_.conv_dense(args, 0, 1, 0, n, reinterpret_cast<uint8_t*>(offsets + most_depth()));
}

void CodeAttention::share(const CodePackets& queries, const CodePackets& keys, int64_t n,
                          float factor, const float* bias, int64_t bias_stride,
                          uint8_t* scratch) const {
  int32_t sums[kBlock];
  for (int64_t m = 0; m < size_.keys; m += kBlock) {
    const int64_t count = std::min(kBlock, size_.keys - m);
    pack_keys(keys, size_.depth, m, count, panel(scratch), sums);
    product(queries, size_.depth, count, sums, queries.zero_point, scores(scratch) + m * stride_, n,
            scratch);
  }
  kernel_.attention_shares(
      {scores(scratch), size_.keys, stride_, n, factor, bias, bias_stride, totals(scratch)});
}

void CodeAttention::mix(const CodePackets& values, MixArgs to, uint8_t* scratch) const {
  const CodePackets shares{scratch, 4 * stride_, 0};
  int32_t* const sums = totals(scratch) + stride_;
  to.totals = totals(scratch);
  to.stride = stride_;
  to.shift = 128 - values.zero_point;
  to.channels = 4;
  for (int64_t d = 0; d < size_.width; d += 2) {
    const int64_t packets = std::min<int64_t>(2, size_.width - d);
    int32_t weight_sums[kBlock];
    const CodePackets part{values.data + d * values.stride * 4, values.stride, 0};
    pack_values(part, size_.keys, packets, panel(scratch), weight_sums);
    product(shares, key_quads(), packets * 4, weight_sums, 0, sums, to.n, scratch);
    for (int64_t b = 0; b < packets; ++b, to.y += to.packet_bytes) {
      to.sums = sums + b * 4 * stride_;
      kernel_.attention_mix(to);
    }
  }
}

}  // namespace tops
