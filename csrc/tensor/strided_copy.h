// SPDX-License-Identifier: Apache-2.0
// Copies of cells of 4 bytes from one order of axes to another.
#pragma once

#include <cstdint>
#include <vector>

namespace tops {

// One axis of a copy: so many cells, whose distances in the source and in the copy are given in
// cells.
struct CopyAxis {
  int64_t size, from, to;
};

// Copies all cells, in runs or in tiles that a first-level cache holds.
void copy_strided(const uint8_t* from, uint8_t* to, std::vector<CopyAxis> axes);

}  // namespace tops
