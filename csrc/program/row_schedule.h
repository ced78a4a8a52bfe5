// SPDX-License-Identifier: Apache-2.0
// Row streaming (depth-first tiling): images run through a program a few rows at a time. Each value
// keeps the rows that its readers still need, so memory grows with the width of the image, not with
// its area, and rows are read while the cache holds them.
#pragma once

#include <cstdint>
#include <vector>

#include "program/node.h"

namespace tops {

// One step of a run: rows of a value, after `keep` rows of its memory have moved down by `drop`.
struct RowTask {
  int id = 0;
  Rows rows{0, 0};
  int64_t drop = 0, keep = 0;
};

// A value of one image as the schedule sees it.
struct StreamedValue {
  ActivationTensor grid;  // margin: as many rows as any reader pads with
  size_t memory = 0;
  bool stored = true;  // false: the caller's own input
  Pairs pairs = Pairs::kNone;
};

// Can every row of the output be had from a few rows of the input?
bool can_stream(const std::vector<Node>& nodes, const std::vector<StreamedValue>& values);

struct RowSchedule {
  std::vector<RowTask> tasks;
  std::vector<int64_t> rows;  // that each memory holds, padding included
};

// Makes `band` more rows of the output at a time, and of everything else what these need.
RowSchedule schedule_rows(const std::vector<Node>& nodes, const std::vector<StreamedValue>& values,
                          size_t memories, int output, int64_t band);

}  // namespace tops
