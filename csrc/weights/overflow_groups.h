// SPDX-License-Identifier: Apache-2.0
// Overflow-safe accumulation groups of 8-bit entries, for instruction sets without a 4-way dot
// product. Two neighboring 8-bit products are first added in a 16-bit lane, where 255 * 128 fits. A
// group is up to kOverflowGroup entries whose weights leave every lane within that bound, whatever
// the input: their products may be added there, and widened once.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace tops {

// Puts entries[begin, end) of one output channel in order of their groups, larger ones first, and
// appends to counts the numbers of groups of 4, 3, 2 and 1 entries. An entry that exceeds the bound
// alone becomes two of half its weights; sums stay the same.
void make_overflow_groups(size_t begin, std::vector<Entry>* entries, std::vector<int32_t>* counts);

// Groups of 2 and 1 entries of two output channels, all of whose lanes stay within the bound.
void make_overflow_groups(size_t begin, std::vector<PairEntry>* entries,
                          std::vector<int32_t>* counts);

}  // namespace tops
