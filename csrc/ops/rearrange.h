// SPDX-License-Identifier: Apache-2.0
// Parts of operator rearrange.
#pragma once

#include <cstdint>
#include <vector>

#include "program/op_kernel.h"

namespace tops {

// Axes behind the batch, as every tensor has them.
constexpr size_t kChannels = 0, kRows = 1, kColumns = 2;

// A factor longer than 1: where it stands in the input's axes and in the value's. Neighbors are so
// many places of the axis apart.
struct Factor {
  int64_t size;
  size_t from_axis, to_axis;
  int64_t from, to;
};
using Factors = std::vector<Factor>;

// Moves u8 whose channels share packets with others in the value than in the input.
void move_codes(const NodeRun& node, const Factors& factors);

}  // namespace tops
