// SPDX-License-Identifier: Apache-2.0
#include "ops/winograd.h"

#include <algorithm>

#include "base/threads.h"
#include "isa/isa.h"
#include "tensor/scratch.h"

namespace tops {
namespace {

// Fewer channels save less than the transforms cost.
constexpr int64_t kLeastChannels = 16;
// Transformed weights are kept for each height of a band beside the plain ones.
constexpr int64_t kMostWeights = 128 * 128;
// Columns of a tile, a multiple of three vectors of any width: its transformed input and products
// stay in a core's second-level cache.
constexpr int64_t kColumns = 144;
constexpr int64_t kTileBytes = 512 * 1024;
constexpr int64_t kParts = 4;

int64_t odd_lines(int64_t packets) { return (divide_up(packets, 16) | 1) * 16; }

}  // namespace

bool by_row_pairs(const PackedView& packed, const Window& w) {
  const WeightShape& s = packed.shape;
  return packed.weights == Weights::kFloat && !packed.sparse && s.r == 3 && s.s == 3 &&
         s.groups == 1 && w.stride_h == 1 && w.stride_w == 1 && w.dil_h == 1 && w.dil_w == 1 &&
         std::min(s.o, s.i) >= kLeastChannels && s.o * s.i <= kMostWeights;
}

WinogradConv::WinogradConv(const PackedView& packed, const WinogradShape& shape, Pairs pairs)
    : shape_(shape),
      packets_(packed.packets),
      outputs_(packed.shape.o),
      first_alone_(pairs == Pairs::kOdd) {
  transform_weights(packed);
  const int64_t fits = kTileBytes / (kParts * 4 * (packets_ + outputs_)) / 48 * 48;
  width_ =
      std::min(std::max<int64_t>(48, std::min(kColumns, fits)), divide_up(shape.out_w, 48) * 48);
  const int64_t apart = odd_lines(width_ + 2) * 4;
  for (int64_t c = 0; c < packets_; ++c)
    for (int64_t s = 0; s < 3; ++s) offsets_.push_back(c * apart + s * 4);
  all_.assign(static_cast<size_t>(width_ / 8 + 16), 0xff);
}

// Weights G g, in float64: g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2 of a column of taps.
void WinogradConv::transform_weights(const PackedView& packed) {
  const int64_t blocks = divide_up(outputs_, kBlock), k = 3 * packets_;
  panels_.resize(static_cast<size_t>(kParts * blocks * k * kBlock));
  for (int64_t b = 0; b < blocks; ++b) {
    const float* const from =
        reinterpret_cast<const float*>(packed.panels + b * packed.panel_bytes);
    for (int64_t c = 0; c < packets_; ++c)
      for (int64_t s = 0; s < 3; ++s)
        for (int64_t j = 0; j < kBlock; ++j) {
          const auto tap = [&](int64_t r) {
            return static_cast<double>(from[((c * 3 + r) * 3 + s) * kBlock + j]);
          };
          const double g0 = tap(0), g1 = tap(1), g2 = tap(2);
          const double made[kParts] = {g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2};
          for (int64_t t = 0; t < kParts; ++t)
            panels_[static_cast<size_t>(((t * blocks + b) * k + c * 3 + s) * kBlock + j)] =
                static_cast<float>(made[t]);
        }
  }
}

void WinogradConv::run(const ConvArgs& a) const {
  const int64_t alone = first_alone_ ? 1 : 0;
  const int64_t pairs = divide_up(shape_.out_h - alone, 2) + alone,
                across = divide_up(shape_.out_w, width_);
  const int64_t input = packets_ * odd_lines(width_ + 2), sums = outputs_ * odd_lines(width_);
  const int64_t bytes = kParts * (input + sums) * 4 + 2 * kSlackBytes;
  const KernelTable& kernel =
      kernels();  // the caller's choice: a forced instruction set belongs to its thread
  parallel_for(shape_.images * pairs * across, a.outputs * a.dense.k * a.pixels / 16,
               [&](int64_t i, int) {
                 const int64_t column = i % across * width_, pair = i / across;
                 const int64_t first = std::max<int64_t>(0, pair % pairs * 2 - alone);
                 const int64_t last = std::min(shape_.out_h, first + (alone && first == 0 ? 1 : 2));
                 tile(kernel, a, pair / pairs, {first, last}, column,
                      std::min(width_, shape_.out_w - column), thread_scratch(bytes));
               });
}

// Two rows, or one at an end of the image; `count` columns of them.
void WinogradConv::tile(const KernelTable& kernel, const ConvArgs& a, int64_t image, Rows rows,
                        int64_t column, int64_t count, uint8_t* scratch) const {
  const int64_t own = odd_lines(width_ + 2) * 4, apart = packets_ * own;
  const int64_t sum_stride = odd_lines(width_) * 4, sums_apart = outputs_ * sum_stride;
  uint8_t* const sums = scratch + kParts * apart + kSlackBytes;
  const bool both = rows.end - rows.begin == 2;
  const int64_t row_stride = shape_.row_stride;
  const int64_t flat = image * shape_.image_stride + rows.begin * row_stride + column;
  for (int64_t c = 0; c < packets_; ++c) {
    const uint8_t* const x = a.x + (c * shape_.channel_stride + flat) * 4;
    const uint8_t* d[4];
    for (int64_t i = 0; i < 4; ++i) d[i] = x + (i < 3 || both ? i : 1) * row_stride * 4;
    kernel.winograd_rows(d, count + 2, scratch + c * own, apart);
  }
  ConvArgs part = a;
  part.pixels = count;
  part.dense.offsets = offsets_.data();
  part.dense.k = 3 * packets_;
  part.dense.panel_bytes = part.dense.k * kBlock * 4;
  part.dense.sums_only = true;
  part.y.channel_stride = sum_stride;
  const int64_t blocks = divide_up(outputs_, kBlock);
  for (int64_t t = 0; t < kParts; ++t) {
    part.x = scratch + t * apart;
    part.y.data = sums + t * sums_apart;
    part.dense.panels =
        reinterpret_cast<const uint8_t*>(panels_.data() + t * blocks * part.dense.k * kBlock);
    kernel.conv_dense(part, 0, blocks, 0, count, nullptr);
  }
  const ConvArgs first = output_row(a, flat, count),
                 second = output_row(a, flat + row_stride, count);
  kernel.winograd_finish(first, both ? &second : nullptr, sums, sum_stride, sums_apart);
}

// The convolution whose only output is `count` pixels from this flat index on.
ConvArgs WinogradConv::output_row(const ConvArgs& a, int64_t flat, int64_t count) const {
  ConvArgs row = a;
  row.pixels = count;
  row.y.valid = all_.data();
  row.y.origin = a.y.origin + flat;
  return row;
}

}  // namespace tops
