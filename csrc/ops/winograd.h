// SPDX-License-Identifier: Apache-2.0
// Winograd's F(2, 3) down the columns, for dense float 3 x 3 convolutions of stride 1: two output
// rows from four products of three taps, two thirds of the multiplications. Its error is bounded by
// the window (|d| * |g| over columns of taps), not by the products: programs use it, operators use
// the direct kernel. Which row is the first of a pair decides how sums round, so pairs begin at
// even rows of an image, or at odd ones and the first row stands alone.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "tensor/conv_input.h"
#include "weights/packed.h"

namespace tops {

enum class Pairs : uint8_t { kNone, kEven, kOdd };  // at which rows they begin

// True if computing pairs of rows pays for this convolution.
bool by_row_pairs(const PackedView& packed, const Window& window);

// Sizes of the output, and packets of the input from one row, image and channel to the next.
struct WinogradShape {
  int64_t images, out_h, out_w;
  int64_t row_stride, image_stride, channel_stride;
};

class WinogradConv {
 public:
  WinogradConv() = default;
  WinogradConv(const PackedView& packed, const WinogradShape& shape, Pairs pairs);
  explicit operator bool() const { return !panels_.empty(); }
  // a: of the whole convolution, its first input packet that of the first tap.
  void run(const ConvArgs& a) const;

 private:
  void tile(const KernelTable& kernel, const ConvArgs& a, int64_t image, Rows rows, int64_t column,
            int64_t count, uint8_t* scratch) const;

  void transform_weights(const PackedView& packed);
  ConvArgs output_row(const ConvArgs& a, int64_t flat, int64_t count) const;

  WinogradShape shape_{};
  int64_t packets_ = 0, outputs_ = 0;
  int64_t width_ = 0;  // columns of a tile
  bool first_alone_ = false;
  std::vector<float> panels_;     // [4][ceil(O/8)][3 * packets][8]
  std::vector<int64_t> offsets_;  // [3 * packets] bytes, in a tile's transformed input
  std::vector<uint8_t> all_;      // bits, one a column: every one is a pixel
};

}  // namespace tops
