// SPDX-License-Identifier: Apache-2.0
// Which convolutions of a program go by pairs of rows (ops/winograd.h), and where their pairs
// begin.
#pragma once

#include <vector>

#include "ops/winograd.h"
#include "program/node.h"

namespace tops {

// Of every node, as far as weights and windows say. One layer's pairs end where the next one's stop
// reading, so that none makes a row before it is needed.
std::vector<Pairs> row_pairs(const std::vector<Node>& nodes);

}  // namespace tops
