// SPDX-License-Identifier: Apache-2.0
// Block-sparse float weights as kernels/block_sparse.inl reads them: CSR rows of 1, 2 or 4
// neighboring output channels, whose entries are one input channel at one tap.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "weights/blob.h"
#include "weights/quads.h"

namespace tops {

// Packing chooses the number of neighboring output channels that share entries: the cheapest for
// the nonzero weights, whatever block size was declared. If all values are exact in 16 bits, they
// are stored in 16 bits.
//
// In a blob: int32 channels, int32 values, int64 row_ptr[groups + 1], int32 columns[count + count %
// 2] (input packet * taps + tap, rising within a row), the values [count][channels], 64 zero bytes.
struct BlockView {
  int64_t channels = 0;  // 0: the weights have another form
  Values values = Values::kFloat32;
  const int64_t* row_ptr = nullptr;
  const int32_t* columns = nullptr;
  const uint8_t* data = nullptr;
  int64_t count = 0;  // entries

  // Values of the largest block of kBlock output channels.
  int64_t most_values(int64_t outputs) const;

  // For the kernel, given the offset of each column. Throws kBadWeights on a column outside.
  // offsets must live as long as the result; it stays empty where the columns are the offsets: one
  // row of a matrix, where another pass over the entries would cost as much as their products.
  BlockArgs place(const std::vector<int32_t>& offset_of_column,
                  std::vector<int32_t>& offsets) const;
};

// w: [O, R, S, I]. Throws kBadWeights where a weight is not finite.
void append_blocks(std::vector<uint8_t>& blob, const float* w, const WeightShape& shape);

// Reads what append_blocks wrote. Throws kBadWeights.
BlockView view_blocks(BlobReader& blob, const WeightShape& shape);

}  // namespace tops
