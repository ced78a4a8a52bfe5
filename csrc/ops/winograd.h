// SPDX-License-Identifier: Apache-2.0
// Dense float 3 x 3 convolutions of stride 1 by pairs of output rows, with two thirds of the
// multiplications. Errors are bounded by what a window holds, |d| * |g| over columns of its taps,
// and not by the products that count alone: operators, which promise the latter, stay with the
// plain way. Which row is the first of a pair decides how sums are rounded: pairs begin at even
// rows of an image, or at odd ones and the first row stands alone.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "tensor/tensor.h"
#include "weights/packed.h"

namespace tops {

struct Window;

enum class Pairs : uint8_t { kNone, kEven, kOdd };  // at which rows they begin

// Do weights and window suit pairs of rows?
bool by_row_pairs(const PackedView& packed, const Window& w);

class RowPairs {
 public:
  RowPairs() = default;
  // rows, columns: of the output; pitch and image: packets from one input row, and image, to the
  // next; plane: packets from one input channel to the next; images: how many. odd: the first row
  // stands alone.
  RowPairs(const PackedView& packed, int64_t images, int64_t rows, int64_t columns, int64_t pitch,
           int64_t image, int64_t plane, bool odd);
  explicit operator bool() const { return !panels_.empty(); }
  // a: of the whole convolution, its first input packet that of the first tap.
  void run(const ConvArgs& a) const;

 private:
  void tile(const KernelTable& kernel, const ConvArgs& a, int64_t image, Rows rows, int64_t column,
            int64_t count, uint8_t* scratch) const;

  int64_t images_ = 0, rows_ = 0, columns_ = 0, pitch_ = 0, image_ = 0, plane_ = 0;
  int64_t packets_ = 0, outputs_ = 0, width_ = 0;
  bool odd_ = false;
  std::vector<float> panels_;     // [4][ceil(O/8)][3 * packets][8]
  std::vector<int64_t> offsets_;  // [3 * packets] bytes, in a tile's transformed input
  std::vector<uint8_t> all_;      // bits
};

}  // namespace tops
