// SPDX-License-Identifier: Apache-2.0
// Images that run through a network a few rows at a time: each value keeps the rows that its
// readers still need, so memory grows with the width of the image, not with its area, and rows are
// read while the cache holds them.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/winograd.h"
#include "program/node.h"

namespace tops {

// One step of a run: rows of a value, after `keep` rows of its memory have moved down by `drop`.
struct RowTask {
  int id = 0;
  Rows rows{0, 0};
  int64_t drop = 0, keep = 0;
};

// What a value of one image is to the bands.
struct BandValue {
  ActivationTensor grid;  // margin: as many rows as any reader pads with
  size_t memory = 0;
  bool stored = true;  // false: the caller's own input
  Pairs pairs = Pairs::kNone;
};

// Input rows that rows of the output read, as if the image had no end.
Rows rows_read(const Node& node, const ActivationTensor& in, const ActivationTensor& out,
               Rows rows);

// Can every output row be had from a few input rows? Not where something sees the whole image.
bool has_bands(const std::vector<Node>& nodes, const std::vector<BandValue>& values);

// Each band makes `band` more rows of the output, and of everything else what these need.
struct Bands {
  std::vector<RowTask> tasks;
  std::vector<int64_t> rows;  // that each memory holds, padding included
};
Bands make_bands(const std::vector<Node>& nodes, const std::vector<BandValue>& values,
                 size_t memories, int output, int64_t band);

}  // namespace tops
