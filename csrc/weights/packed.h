// SPDX-License-Identifier: Apache-2.0
// Packed weights of a convolution, in the layout its kernel reads: dense panels, sparse entries
// (CSR over output channels, or over pairs of them) or float blocks. A blob of bytes with a header,
// so that torch can hold it in a buffer; never stored in files.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "weights/blob.h"
#include "weights/block_sparse.h"
#include "weights/quads.h"

namespace tops {

// 64 bytes at the head of a blob. Little-endian, as every machine this builds for.
struct PackedHeader {
  char magic[8];
  int32_t version, sparse, weights, paired;
  int64_t o, r, s, i, groups;
};
static_assert(sizeof(PackedHeader) == 64, "the header is part of the layout");

// View of a blob's parts; made by view_packed, which checks every size.
//
// Dense panels are [ceil(O/8)][K][8 outputs] 4-byte quads or floats. Ternary ones are stored as
// groups of 8 rows of K in 64 bytes, so that a mask and a table look-up of the whole group give two
// rows at a time: bits 2j, 2j + 1 of byte b hold weight byte b of rows 2j (b < 32) and 2j + 1. The
// last group is padded with zeros.
struct PackedView {
  WeightShape shape;
  Weights weights = Weights::kTernary;
  bool sparse = false;
  int64_t packets = 0;               // input packets of one pixel, all groups
  int64_t k = 0;                     // dense: packets of one group x taps
  const int32_t* sums = nullptr;     // [O] sum of the weights
  const int64_t* row_ptr = nullptr;  // sparse: [O + 1] first entry of each output channel
  // Sparse int8: [O][kOverflowGroup], weights/overflow_groups.h.
  const int32_t* overflow_groups = nullptr;
  // Sparse int8 by pairs of channels, instead: kernels/table.h.
  const int64_t* pair_row_ptr = nullptr;
  const int32_t* pair_overflow_groups = nullptr;
  const PairEntry* pairs = nullptr;
  const Entry* entries = nullptr;   // sparse: offset holds packet * taps + tap
  BlockView blocks;                 // sparse float
  const uint8_t* panels = nullptr;  // dense
  int64_t panel_bytes = 0;
  int64_t entry_count() const { return row_ptr ? row_ptr[shape.o] : blocks.count; }
  int64_t pair_count() const { return pair_row_ptr ? pair_row_ptr[(shape.o + 1) / 2] : 0; }
};

// w: ternary codes [O, R, S, ceil(I/4)], int8 [O, R, S, 4 ceil(I/4)] or float [O, R, S, I]. dense
// needs groups == 1 or I % 4 == 0 and O / groups % 8 == 0; other groups become sparse, whatever is
// asked. Throws kBadWeights on the invalid code, kUnsupportedShape where int32 could overflow.
std::vector<uint8_t> pack_weights(bool sparse, Weights weights, const void* w,
                                  const WeightShape& shape);

// For ConvInput::from_filter_rows: the filter as one of [R, ceil(S * I / 4)] taps x 4 channels
// whose tap (i, j) holds values 4j .. 4j + 3 of filter row i, taps first, channels innermost. Same
// kinds and layouts.
std::vector<uint8_t> pack_filter_rows(Weights weights, const void* w, WeightShape shape,
                                      WeightShape* packed);

// Throws kBadWeights where the bytes are not what pack_weights made, or do not begin at a multiple
// of 8.
PackedView view_packed(const uint8_t* bytes, int64_t size);

// True if skipping empty quads is faster than computing them, with the kernels in force.
bool prefer_sparse(Weights weights, double density, int64_t r, int64_t s);

// Throws kUnsupportedShape on impossible sizes.
void check_shape(const WeightShape& shape, Weights weights);

}  // namespace tops
