// SPDX-License-Identifier: Apache-2.0
// Channel statistics of a run: each integer value is added up as soon as rows of it are finished,
// while the cache holds them, and before another value takes their place.
#include <algorithm>

#include "base/threads.h"
#include "isa/isa.h"
#include "program/memory_plan.h"

namespace tops {

std::vector<int64_t> MemoryPlan::totals_offsets() const {
  std::vector<int64_t> offset{0};
  for (const NodePlan& s : node_plans_)
    offset.push_back(offset.back() + (s.grid.is_float ? 0 : s.grid.channels));
  return offset;
}

// Pixels alone, no padding. Integers: any order of rows, bands and images gives the same totals.
void MemoryPlan::add_totals(const RowTask& task, const RunContext& context) const {
  const ActivationTensor& g = grid(task.id);
  const ChannelTotals& t = *context.totals;
  const KernelTable& kernel = kernels();
  const uint8_t* const value = data(context, task.id);
  // Rows that lie one behind the other are one.
  const bool closed = g.pitch == g.w;
  const int64_t height = task.rows.end - task.rows.begin, rows = closed ? 1 : height;
  const int64_t row = closed ? height * g.w : g.w;
  parallel_for(g.packets, g.packets * g.n * height * g.w / 2, [&](int64_t c, int) {
    const int64_t channels = std::min<int64_t>(4, g.channels - c * 4);
    for (int64_t i = 0; i < g.n; ++i) {
      int64_t sums[4] = {}, squares[4] = {};
      const int64_t first = c * g.channel_stride + g.packet(i, task.rows.begin, 0);
      kernel.channel_sums(value + first * 4, rows, g.pitch, row, sums, squares);
      const int64_t at = i * t.stride + t.offset[static_cast<size_t>(task.id)] + c * 4;
      for (int64_t j = 0; j < channels; ++j) {
        t.sums[at + j] += sums[j];
        t.squares[at + j] += squares[j];
      }
    }
  });
}

}  // namespace tops
