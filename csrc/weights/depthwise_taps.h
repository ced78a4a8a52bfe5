// SPDX-License-Identifier: Apache-2.0
// Weights of a depthwise convolution as kernels/depthwise.inl reads them: the taps of each packet
// of channels in groups of four.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"
#include "weights/packed.h"

namespace tops {

struct TapGroups {
  std::vector<int32_t> row_ptr;  // [packets + 1] first group of each packet
  std::vector<TapGroup> groups;
};

// True for a depthwise convolution: one filter per channel.
inline bool is_depthwise(const PackedView& p) {
  return p.sparse && p.weights != Weights::kFloat && p.shape.i == 1 &&
         p.shape.groups == p.shape.o && p.entries;
}

// Four taps of one packet make a group. Neighboring taps of a group share a 16-bit lane on
// instruction sets without a 4-way dot product, so they are matched such that no channel can exceed
// it; a tap that exceeds it beside every other gets a lane of its own. offsets: of entry (packet,
// tap), as ops/conv.cpp places them.
TapGroups make_tap_groups(const PackedView& packed, const std::vector<int32_t>& offsets);

}  // namespace tops
