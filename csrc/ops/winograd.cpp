// SPDX-License-Identifier: Apache-2.0
#include "ops/winograd.h"

#include <algorithm>

#include "base/threads.h"
#include "isa/isa.h"
#include "ops/conv.h"
#include "tensor/conv_input.h"

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

RowPairs::RowPairs(const PackedView& packed, int64_t images, int64_t rows, int64_t columns,
                   int64_t pitch, int64_t image, int64_t plane, bool odd)
    : images_(images),
      rows_(rows),
      columns_(columns),
      pitch_(pitch),
      image_(image),
      plane_(plane),
      packets_(packed.packets),
      outputs_(packed.shape.o),
      odd_(odd) {
  const int64_t blocks = divide_up(outputs_, kBlock), k = 3 * packets_;
  panels_.resize(static_cast<size_t>(kParts * blocks * k * kBlock));
  // Weights G g, in float64: g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2 of a column of taps.
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
  const int64_t fits = kTileBytes / (kParts * 4 * (packets_ + outputs_)) / 48 * 48;
  width_ = std::min(std::max<int64_t>(48, std::min(kColumns, fits)), divide_up(columns, 48) * 48);
  const int64_t apart = odd_lines(width_ + 2) * 4;
  for (int64_t c = 0; c < packets_; ++c)
    for (int64_t s = 0; s < 3; ++s) offsets_.push_back(c * apart + s * 4);
  all_.assign(static_cast<size_t>(width_ / 8 + 16), 0xff);
}

void RowPairs::run(const ConvArgs& a) const {
  const int64_t alone = odd_ ? 1 : 0;
  const int64_t pairs = divide_up(rows_ - alone, 2) + alone, across = divide_up(columns_, width_);
  const int64_t input = packets_ * odd_lines(width_ + 2), sums = outputs_ * odd_lines(width_);
  const int64_t bytes = kParts * (input + sums) * 4 + 2 * kSlackBytes;
  const KernelTable& kernel =
      kernels();  // the caller's choice: a forced instruction set belongs to its thread
  parallel_for(images_ * pairs * across, a.outputs * a.k * a.pixels / 16, [&](int64_t i, int) {
    const int64_t column = i % across * width_, pair = i / across;
    const int64_t first = std::max<int64_t>(0, pair % pairs * 2 - alone);
    const int64_t last = std::min(rows_, first + (alone && first == 0 ? 1 : 2));
    tile(kernel, a, pair / pairs, {first, last}, column, std::min(width_, columns_ - column),
         panel_scratch(bytes));
  });
}

// Two rows, or one at an end of the image; `count` columns of them.
void RowPairs::tile(const KernelTable& kernel, const ConvArgs& a, int64_t image, Rows rows_made,
                    int64_t column, int64_t count, uint8_t* scratch) const {
  const int64_t own = odd_lines(width_ + 2) * 4, apart = packets_ * own;
  const int64_t sum_plane = odd_lines(width_) * 4, sums_apart = outputs_ * sum_plane;
  uint8_t* const sums = scratch + kParts * apart + kSlackBytes;
  const bool both = rows_made.end - rows_made.begin == 2;
  const int64_t flat = image * image_ + rows_made.begin * pitch_ + column;
  for (int64_t c = 0; c < packets_; ++c) {
    const uint8_t* const x = a.x + (c * plane_ + flat) * 4;
    const uint8_t* d[4];
    for (int64_t i = 0; i < 4; ++i) d[i] = x + (i < 3 || both ? i : 1) * pitch_ * 4;
    kernel.winograd_rows(d, count + 2, scratch + c * own, apart);
  }
  ConvArgs part = a;
  part.pixels = count;
  part.offsets = offsets_.data();
  part.k = 3 * packets_;
  part.panel_bytes = part.k * kBlock * 4;
  part.sums = true;
  part.plane = sum_plane;
  const int64_t blocks = divide_up(outputs_, kBlock);
  for (int64_t t = 0; t < kParts; ++t) {
    part.x = scratch + t * apart;
    part.y = sums + t * sums_apart;
    part.panels = reinterpret_cast<const uint8_t*>(panels_.data() + t * blocks * part.k * kBlock);
    kernel.conv_dense(part, 0, blocks, 0, count, nullptr);
  }
  ConvArgs rows[2] = {a, a};
  for (int64_t i = 0; i < 2; ++i) {
    rows[i].pixels = count;
    rows[i].valid = all_.data();
    rows[i].origin = a.origin + flat + i * pitch_;
  }
  kernel.winograd_finish(rows[0], both ? &rows[1] : nullptr, sums, sum_plane, sums_apart);
}

}  // namespace tops
