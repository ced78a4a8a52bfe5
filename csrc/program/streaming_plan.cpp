// SPDX-License-Identifier: Apache-2.0
// Plans that stream: through an image a few rows at a time.
#include <algorithm>
#include <map>
#include <numeric>

#include "program/memory_plan.h"

namespace tops {
namespace {

// A network goes through the image in bands where one of its values takes more than this: a core's
// second-level cache holds it beside the values it is made from.
constexpr int64_t kLargestWhole = 256 * 1024;
// Bytes of the largest value in a band.
constexpr int64_t kBandBytes = 512 * 1024;

// Preferred minimum of input rows in a band, where they fit into kGoodBytes: a filter of three rows
// reads its last rows again for the next band, by then from a slower cache.
constexpr int64_t kGoodRows = 4;
constexpr int64_t kGoodBytes = 48 * 1024 * 1024;

int64_t row_bytes(const ActivationTensor& g) { return g.packets * g.pitch * 4; }

}  // namespace

// Each value with the padding rows that any reader of its size wants, in the memory it will lie in.
std::vector<StreamedValue> MemoryPlan::streamed_values(size_t& memories) const {
  std::vector<size_t> readers(nodes_.size(), 0);
  for (const Node& node : nodes_)
    for (const int input : node.inputs) ++readers[static_cast<size_t>(input)];
  std::map<std::pair<int64_t, int64_t>, int64_t> margins;
  for (const Node& node : nodes_)
    if (const int64_t wanted = node.op->margin()) {
      const ActivationTensor& in = grid(node.inputs[0]);
      int64_t& margin = margins[{in.h, in.w}];
      margin = std::max(margin, wanted);
    }
  std::map<size_t, size_t> shared;
  std::vector<StreamedValue> values;
  memories = 0;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const NodePlan& s = node_plans_[id];
    StreamedValue v{s.grid, memories, !s.external, pairs_[id]};
    if (v.stored) v.grid.margin = margins[{v.grid.h, v.grid.w}];
    const int concat = aliases_[id].concat;
    const size_t owner = concat < 0 ? id : static_cast<size_t>(concat);
    const size_t first = id ? static_cast<size_t>(nodes_[id].inputs[0]) : 0;
    if (may_replace(id) && readers[first] == 1)
      v.memory = values[first].memory;
    else if (const auto made = shared.find(owner); made != shared.end())
      v.memory = made->second;
    else
      ++memories;
    if (concat >= 0) shared[owner] = v.memory;
    values.push_back(v);
  }
  return values;
}

// All memories for the whole run, since all are in use at once. False where bands cannot be had or
// are not needed.
bool MemoryPlan::place_streaming(int64_t forced) {
  const int64_t out_h = node_plan(output_).grid.h, in_h = node_plan(0).grid.h;
  int64_t largest = 0, widest = 0;
  for (const NodePlan& s : node_plans_) {
    largest = std::max(largest, row_bytes(s.grid) * s.grid.h);
    widest = std::max(widest, divide_up(row_bytes(s.grid) * s.grid.h, out_h));
  }
  const int64_t factor = std::max<int64_t>(1, divide_up(out_h, in_h));
  size_t memories = 0;
  std::vector<StreamedValue> values = streamed_values(memories);
  if (!can_stream(nodes_, values)) return false;
  if (forced > 0) {
    if (forced >= out_h) return false;
    plan_streaming(forced);
    return true;
  }
  int64_t rows = std::max<int64_t>(1, kBandBytes / (widest * factor));
  if (largest <= kLargestWhole || rows * factor >= out_h) return false;
  const auto bytes_of = [&](int64_t some) {
    const RowSchedule made = schedule_rows(nodes_, values, memories, output_, some * factor);
    std::vector<int64_t> bytes(memories, 0);
    for (const StreamedValue& v : values)
      if (v.stored)
        bytes[v.memory] = std::max(bytes[v.memory], made.rows[v.memory] * row_bytes(v.grid));
    return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  };
  const int64_t least = rows < kGoodRows ? bytes_of(rows) : 0;
  for (int64_t more = kGoodRows; more > rows; --more)
    if (bytes_of(more) <= std::max(kGoodBytes, least * 6 / 5)) rows = more;
  plan_streaming(rows * factor);
  return true;
}

// Plans the run in bands of `band` output rows: memories, scratch and tasks.
void MemoryPlan::plan_streaming(int64_t band) {
  band_ = band;
  drop_wasteful_aliases(band);
  size_t memories = 0;
  const std::vector<StreamedValue> values = streamed_values(memories);
  RowSchedule schedule = schedule_rows(nodes_, values, memories, output_, band);
  memories_.assign(memories, {});
  std::vector<int64_t> bytes(memories, 0);
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const StreamedValue& v = values[id];
    NodePlan& s = node_plans_[id];
    s.memory = v.memory;
    s.grid = v.grid;
    if (!v.stored) continue;
    s.grid.keep(schedule.rows[v.memory], v.grid.margin);
    bytes[v.memory] = std::max(bytes[v.memory], round_up(s.grid.bytes()));
    int64_t& packets = memories_[v.memory].packets;
    packets = std::max(packets, s.grid.packets);
  }
  for (size_t m = 0; m < memories; ++m) {
    memories_[m].at = arena_bytes_;
    memories_[m].rows = schedule.rows[m];
    arena_bytes_ += bytes[m];
  }
  int64_t scratch = 0;
  for (const RowTask& task : schedule.tasks) {
    const Prepared* const prepared = prepare(task.id, task.rows);
    if (prepared) scratch = std::max(scratch, prepared->scratch_bytes());
  }
  for (NodePlan& s : node_plans_) s.scratch = memories;
  memories_.push_back({arena_bytes_, 0, 0});
  arena_bytes_ += round_up(scratch);
  tasks_ = std::move(schedule.tasks);
}

// In one memory all parts of a concat keep as many rows as the one that waits longest. Where that
// is much more than what each would keep alone, they are copied instead.
void MemoryPlan::drop_wasteful_aliases(int64_t band) {
  std::vector<ConcatAlias> wanted(nodes_.size());
  wanted.swap(aliases_);
  size_t memories = 0;
  const std::vector<StreamedValue> values = streamed_values(memories);
  const RowSchedule alone = schedule_rows(nodes_, values, memories, output_, band);
  aliases_.swap(wanted);
  const auto rows = [&](size_t id) { return alone.rows[values[id].memory]; };
  for (size_t id = 0; id < nodes_.size(); ++id) {
    if (!aliases_[id].holds) continue;
    int64_t longest = rows(id), apart = longest * node_plans_[id].grid.packets;
    for (size_t part = 0; part < id; ++part)
      if (aliases_[part].concat == static_cast<int>(id)) {
        longest = std::max(longest, rows(part));
        apart += rows(part) * node_plans_[part].grid.packets;
      }
    if (4 * longest * node_plans_[id].grid.packets <= 5 * apart) continue;
    for (ConcatAlias& alias : aliases_)
      if (alias.concat == static_cast<int>(id)) alias = {};
    aliases_[id].holds = false;
  }
}

}  // namespace tops
