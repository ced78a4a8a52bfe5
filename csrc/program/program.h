// SPDX-License-Identifier: Apache-2.0
// A program: nodes in order, node i makes value i, the last is the output. Plans for input sizes
// are made at the first run with them and kept.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "program/memory_plan.h"
#include "program/node.h"

namespace tops {

class Program {
 public:
  // Appends a node of the operator that the attributes name; returns its id. The first one is the
  // input. Throws kUnsupportedModel where inputs or attributes do not suit the operator.
  int add(const Attributes& at, const std::vector<int>& inputs);
  void output(int id);

  const std::vector<Node>& nodes() const { return nodes_; }
  int output_node() const { return output_; }

  // x: [N, C], [N, C, H, W], or [N, L, C] with h = 1 and w = L, as the input's rank says; y: the
  // output, likewise. Several images may run at once, each as if it were alone.
  // totals: or null, with the offsets of totals_offsets(n, h, w).
  void run(const float* x, int64_t n, int64_t h, int64_t w, float* y,
           const ChannelTotals* totals = nullptr);
  std::vector<int64_t> totals_offsets(int64_t n, int64_t h, int64_t w);
  // Bytes that the values of such a run take at most.
  int64_t peak_bytes(int64_t n, int64_t h, int64_t w);

  // The plan for one input size (h = w = 1 for rank 2); keep_all: every value keeps its memory
  // until the next run.
  std::shared_ptr<const MemoryPlan> plan(int64_t n, int64_t h, int64_t w, bool keep_all = false);
  // For tests: plans made from now on go by these.
  void debug(const PlanDebug& options);

 private:
  int64_t images_at_once(int64_t n, int64_t h, int64_t w);

  std::vector<Node> nodes_;
  int output_ = -1;
  PlanDebug debug_;
  std::mutex mutex_;
  using Key = std::tuple<int64_t, int64_t, int64_t, bool>;
  std::list<std::pair<Key, std::shared_ptr<const MemoryPlan>>> plans_;  // most recent first
};

}  // namespace tops
