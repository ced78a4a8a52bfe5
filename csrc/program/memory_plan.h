// SPDX-License-Identifier: Apache-2.0
// The plan of a program at one input size: where values lie in memory, and which rows of which
// value are made in which order. Immutable; each run brings its own arena.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "program/node.h"
#include "program/row_schedule.h"

namespace tops {

struct NodeProfile {
  std::string op;
  double ms = 0;
  int64_t macs = 0;
  double density = 1.0;
};

// Overrides for tests. band: output rows made at a time wherever the network can be streamed,
// whatever the image size; 0: as many as fit the caches. poison: every run starts with memory full
// of NaN.
struct PlanDebug {
  int64_t band = 0;
  bool poison = false;
};

// Totals that a run adds to: of every image, per channel of every integer value, one value behind
// the other, the sum of the codes and of their squares.
struct ChannelTotals {
  int64_t *sums, *squares;
  int64_t stride;                      // from one image to the next
  const std::vector<int64_t>& offset;  // of each value's first channel
};

// Mutable state of one execution.
struct RunContext {
  const float* x;
  float* y;
  uint8_t* arena;
  const ChannelTotals* totals;  // or null
  std::vector<int64_t> first;   // streaming: padded row of its values that a memory begins with
};

class MemoryPlan {
 public:
  // input: its channels are the input node's.
  MemoryPlan(const std::vector<Node>& nodes, int output, const Shape& input, bool keep_all,
             const PlanDebug& debug = {});
  int64_t arena_bytes() const { return arena_bytes_; }
  // Rows of the output at a time; 0: every value as a whole.
  int64_t band() const { return band_; }
  const std::vector<RowTask>& tasks() const { return tasks_; }
  // Streaming: the memory that a value lies in, or -1 for the caller's own.
  int64_t memory(int id) const {
    const NodePlan& s = node_plan(id);
    return s.external ? -1 : static_cast<int64_t>(s.memory);
  }
  // Rows that such a memory holds.
  int64_t rows(int id) const { return memories_[node_plan(id).memory].rows; }
  const ActivationTensor& grid(int id) const { return node_plan(id).grid; }
  // Of a plan that keeps all.
  const uint8_t* value(int id, const Buffer& arena) const {
    return arena.data() + memories_[node_plan(id).memory].at;
  }
  // Offset of each value in ChannelTotals, and behind them the number of all its channels.
  std::vector<int64_t> totals_offsets() const;
  // x, y: the caller's arrays; y may be null. profile: null, or one entry a node. totals: or null.
  void run(const float* x, float* y, Buffer& arena, std::vector<NodeProfile>* profile = nullptr,
           const ChannelTotals* totals = nullptr) const;
  Buffer take_arena() const;
  void give_arena(Buffer arena) const;

 private:
  friend class PlannedNode;
  friend class NodeRun;

  // Placement of a value within the memory of a concatenation.
  struct ConcatAlias {
    int concat = -1;     // -1: in memory of its own
    int64_t offset = 0;  // in packets, from the concatenation's first
    bool holds = false;  // is it such a concatenation itself?
  };
  struct NodePlan {
    ActivationTensor grid;
    size_t memory = 0, scratch = 0;                         // of memories_
    std::map<int64_t, std::unique_ptr<Prepared>> prepared;  // by strip_key
    bool external = false;  // the caller's own memory: an input or an output
  };
  struct Memory {
    int64_t at = 0, packets = 0, rows = 0;
  };

  void infer_shapes(const Shape& input);
  void choose_halos();
  void choose_row_pairs();
  bool can_stay_with_caller(int id) const;
  void find_concat_aliases();
  void drop_wasteful_aliases(int64_t band);
  bool may_replace(size_t id) const;
  void place_whole(bool keep_all);
  bool place_streaming(int64_t forced);
  void plan_streaming(int64_t band);
  std::vector<StreamedValue> streamed_values(size_t& memories) const;
  int64_t strip_key(int id, Rows rows) const;
  const Prepared* prepare(int id, Rows rows);
  const Prepared* prepared(int id, Rows rows) const;
  // The first packet of a value, where all its rows would lie if they were there.
  uint8_t* data(const RunContext& context, int id) const;
  void move_down(const RowTask& task, RunContext& context) const;
  void run_task(const RowTask& task, RunContext& context) const;
  void add_totals(const RowTask& task, const RunContext& context) const;
  Buffer used_arena() const;
  const Node& node(int id) const { return nodes_[static_cast<size_t>(id)]; }
  const NodePlan& node_plan(int id) const { return node_plans_[static_cast<size_t>(id)]; }

  const std::vector<Node>& nodes_;
  int output_;
  std::vector<Pairs> pairs_;
  std::vector<NodePlan> node_plans_;
  std::vector<ConcatAlias> aliases_;
  std::vector<RowTask> tasks_;
  std::vector<Memory> memories_;
  int64_t arena_bytes_ = 0, band_ = 0;
  bool poison_;
  mutable std::mutex mutex_;
  mutable std::vector<Buffer> arenas_;
};

}  // namespace tops
