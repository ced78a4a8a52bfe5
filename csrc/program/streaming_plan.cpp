// SPDX-License-Identifier: Apache-2.0
// Plans that go through an image a few rows at a time.
#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "base/threads.h"
#include "program/program.h"

namespace tops {
namespace {

// A network goes through the image in bands where one of its values takes more than this: a core's
// second-level cache holds it beside the values it is made from.
constexpr int64_t kLargestWhole = 256 * 1024;
// What a band makes of its largest value.
constexpr int64_t kBandBytes = 512 * 1024;

// Rows of the input that a band had better have: a filter of three rows reads each of them again
// for the next band, by then from a slower cache. Where they fit into so much memory.
constexpr int64_t kGoodRows = 4;
constexpr int64_t kGoodBytes = 48 * 1024 * 1024;

int64_t row_bytes(const ActivationTensor& g) { return g.packets * g.pitch * 4; }

}  // namespace

// Each value with the padding rows that any reader of its size wants, in the memory it will lie in.
std::vector<BandValue> MemoryPlan::band_values(size_t& memories) const {
  std::vector<size_t> readers(nodes_.size(), 0);
  for (const Node& node : nodes_)
    for (const int input : inputs_of(node)) ++readers[static_cast<size_t>(input)];
  std::map<std::pair<int64_t, int64_t>, int64_t> margins;
  for (const Node& node : nodes_)
    if (node.op == Op::kConv) {
      const ActivationTensor& in = step(node.a).grid;
      int64_t& margin = margins[{in.h, in.w}];
      margin = std::max(margin, node.window.pad_h);
    }
  std::map<size_t, size_t> homes;
  std::vector<BandValue> values;
  memories = 0;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const NodePlan& s = steps_[id];
    BandValue v{s.grid, memories, !s.external, pairs_[id]};
    if (v.stored) v.grid.margin = margins[{v.grid.h, v.grid.w}];
    const size_t a = static_cast<size_t>(nodes_[id].a);
    const int home = homes_[id].concat;
    const size_t owner = home < 0 ? id : static_cast<size_t>(home);
    if (may_replace(id) && readers[a] == 1)
      v.memory = values[a].memory;
    else if (const auto made = homes.find(owner); made != homes.end())
      v.memory = made->second;
    else
      ++memories;
    if (home >= 0) homes[owner] = v.memory;
    values.push_back(v);
  }
  return values;
}

// All memories for the whole run, since all are in use at once. False where bands cannot be had or
// are not needed.
bool MemoryPlan::place_bands(int64_t forced) {
  const int64_t out_h = step(output_).grid.h, in_h = step(0).grid.h;
  int64_t largest = 0, widest = 0;
  for (const NodePlan& s : steps_) {
    largest = std::max(largest, row_bytes(s.grid) * s.grid.h);
    widest = std::max(widest, divide_up(row_bytes(s.grid) * s.grid.h, out_h));
  }
  const int64_t factor = std::max<int64_t>(1, divide_up(out_h, in_h));
  size_t memories = 0;
  std::vector<BandValue> values = band_values(memories);
  if (!has_bands(nodes_, values)) return false;
  if (forced > 0) {
    if (forced >= out_h) return false;
    schedule_bands(forced);
    return true;
  }
  int64_t rows = std::max<int64_t>(1, kBandBytes / (widest * factor));
  if (largest <= kLargestWhole || rows * factor >= out_h) return false;
  const auto bytes_of = [&](int64_t some) {
    const Bands made = make_bands(nodes_, values, memories, output_, some * factor);
    std::vector<int64_t> bytes(memories, 0);
    for (const BandValue& v : values)
      if (v.stored)
        bytes[v.memory] = std::max(bytes[v.memory], made.rows[v.memory] * row_bytes(v.grid));
    return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
  };
  const int64_t least = rows < kGoodRows ? bytes_of(rows) : 0;
  for (int64_t more = kGoodRows; more > rows; --more)
    if (bytes_of(more) <= std::max(kGoodBytes, least * 6 / 5)) rows = more;
  schedule_bands(rows * factor);
  return true;
}

// Plans the run in bands of so many output rows: memories, scratch and tasks.
void MemoryPlan::schedule_bands(int64_t band) {
  band_ = band;
  keep_short_homes(band);
  size_t memories = 0;
  const std::vector<BandValue> values = band_values(memories);
  Bands bands = make_bands(nodes_, values, memories, output_, band);
  memories_.assign(memories, {});
  std::vector<int64_t> bytes(memories, 0);
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const BandValue& v = values[id];
    NodePlan& s = steps_[id];
    s.memory = v.memory;
    s.grid = v.grid;
    if (!v.stored) continue;
    s.grid.keep(bands.rows[v.memory], v.grid.margin);
    bytes[v.memory] = std::max(bytes[v.memory], round_up(s.grid.bytes()));
    int64_t& packets = memories_[v.memory].packets;
    packets = std::max(packets, s.grid.packets);
  }
  for (size_t m = 0; m < memories; ++m) {
    memories_[m].at = arena_bytes_;
    memories_[m].rows = bands.rows[m];
    arena_bytes_ += bytes[m];
  }
  int64_t scratch = 0;
  for (const RowTask& task : bands.tasks) {
    const size_t id = static_cast<size_t>(task.id);
    if (nodes_[id].op == Op::kConv)
      scratch = std::max(scratch, add_conv(id, task.rows).scratch_bytes());
  }
  for (NodePlan& s : steps_) s.scratch = memories;
  memories_.push_back({arena_bytes_, 0, 0});
  arena_bytes_ += round_up(scratch);
  tasks_ = std::move(bands.tasks);
}

// In one memory all parts of a concat keep as many rows as the one that waits longest. Where that
// is much more than what each would keep alone, they are copied instead.
void MemoryPlan::keep_short_homes(int64_t band) {
  std::vector<ConcatAlias> wanted(nodes_.size());
  wanted.swap(homes_);
  size_t memories = 0;
  const std::vector<BandValue> values = band_values(memories);
  const Bands alone = make_bands(nodes_, values, memories, output_, band);
  homes_.swap(wanted);
  const auto rows = [&](size_t id) { return alone.rows[values[id].memory]; };
  for (size_t id = 0; id < nodes_.size(); ++id) {
    if (!homes_[id].holds) continue;
    int64_t longest = rows(id), apart = longest * steps_[id].grid.packets;
    for (size_t part = 0; part < id; ++part)
      if (homes_[part].concat == static_cast<int>(id)) {
        longest = std::max(longest, rows(part));
        apart += rows(part) * steps_[part].grid.packets;
      }
    if (4 * longest * steps_[id].grid.packets <= 5 * apart) continue;
    for (ConcatAlias& home : homes_)
      if (home.concat == static_cast<int>(id)) home = {};
    homes_[id].holds = false;
  }
}

uint8_t* MemoryPlan::data(const RunContext& f, int id) const {
  const NodePlan& s = step(id);
  if (s.external) return reinterpret_cast<uint8_t*>(f.y);
  // Not within the memory where rows have been let go; no row of those is touched.
  const int64_t gone = f.first.empty() ? 0 : f.first[s.memory] * s.grid.pitch;
  const int64_t before = homes_[static_cast<size_t>(id)].offset * s.grid.channel_stride;
  return f.arena + (memories_[s.memory].at + (before - gone) * 4);
}

void MemoryPlan::move_down(const RowTask& task, RunContext& f) const {
  const NodePlan& s = step(task.id);
  const ActivationTensor& g = s.grid;
  const Memory& place = memories_[s.memory];
  uint8_t* const memory = f.arena + place.at;
  parallel_for(place.packets, place.packets * task.keep * g.pitch / 16, [&](int64_t c, int) {
    uint8_t* const plane = memory + c * g.channel_stride * 4;
    std::memmove(plane, plane + task.drop * g.pitch * 4,
                 static_cast<size_t>(task.keep * g.pitch + g.halo) * 4);
  });
  f.first[s.memory] += task.drop;
}

}  // namespace tops
