// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.h"

namespace tops {

// Without 4-way dot products, two neighboring 8-bit products are first added in a 16-bit lane,
// where 255 * 128 fits. A bundle is up to kMostBundle entries whose weights leave every lane within
// that bound, whatever the input: their products may be added there, and widened once.
//
// Puts entries[begin, end) of one output channel in order of bundles, larger ones first, and
// appends the numbers of bundles of 4, 3, 2 and 1 entries. An entry that exceeds the bound alone
// becomes two of half its weights; sums stay the same.
void bundle_entries(size_t begin, std::vector<Entry>* entries, std::vector<int32_t>* counts);

// The same for entries of two output channels, all of whose lanes stay within the bound: bundles of
// 2 and 1.
void bundle_pairs(size_t begin, std::vector<PairEntry>* entries, std::vector<int32_t>* counts);

}  // namespace tops
