// SPDX-License-Identifier: Apache-2.0
// A whole network: nodes in order, node i makes value i. Shapes are planned at the first run with
// them and kept.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "ops/conv.h"
#include "ops/layer_weights.h"
#include "program/node.h"
#include "program/row_schedule.h"

namespace tops {

struct NodeProfile {
  std::string op;
  double ms = 0;
  int64_t macs = 0;
  double density = 1.0;
};

class MemoryPlan;

// What tests change in a plan. band: rows of the output that a band makes wherever bands can be
// had, whatever the size of the image; 0: as many as fit the caches. poison: every run begins in
// memory that holds NaN.
struct PlanDebug {
  int64_t band = 0;
  bool poison = false;
};

class Engine {
 public:
  Engine();
  ~Engine();
  int input(int64_t channels, int rank);
  // fine: what rounding takes away follows each four channels, in steps an eighth as large, as four
  // channels more; a convolution reads it with filters to suit.
  int quantize(int x, float scale, int zero_point, bool fine = false);
  int dequantize(int x);
  int conv2d(int x, int residual, int gate, const ConvWeights& w, const Window& window,
             const Requantize& q);
  int linear(int x, int residual, const ConvWeights& w, const Requantize& q);
  int max_pool2d(int x, int64_t kh, int64_t kw, const Window& window, bool ceil);
  int avg_pool2d(int x, int64_t kh, int64_t kw, const Window& window, bool ceil, bool include_pad,
                 int64_t divisor, const Requantize& q);
  int adaptive_avg_pool2d(int x, int64_t oh, int64_t ow, const Requantize& q);
  int add(int a, int b, const Requantize& q);  // b -1: clamp
  int flatten(int x);
  // table: of a u8 value, what its 256 codes become; empty for floats.
  int activation(int x, const std::string& function, const std::vector<float>& params,
                 const std::vector<float>& table, float y_scale, int y_zero_point);
  int mul(int a, int b, float lo, float hi, float y_scale, int y_zero_point);
  int concat(const std::vector<int>& parts, float y_scale, int y_zero_point);
  int slice(int x, int64_t begin, int64_t end);
  using Pair = std::pair<int64_t, int64_t>;
  int pixel_shuffle(int x, const Pair& factor, const Pair& crop);
  int pixel_unshuffle(int x, const Pair& factor);
  int channel_shuffle(int x, int64_t groups);
  // like: a value whose image size is taken, or -1; size and zoom 0: not given.
  int resize(int x, int like, bool bilinear, bool align, const Pair& size,
             const std::pair<float, float>& zoom);
  int unflatten(int x);
  int softmax(int x);
  int layer_norm(int x, const std::vector<float>& weight, const std::vector<float>& bias,
                 float eps);
  void output(int x);

  const std::vector<Node>& nodes() const { return nodes_; }
  int output_node() const { return output_; }

  // x: NCHW or NC; y: the output, likewise. Several images may run at once, each as if it were
  // alone.
  void run(const float* x, int64_t n, int64_t h, int64_t w, float* y);
  // Memory that the values of such a run take at most.
  int64_t peak_bytes(int64_t n, int64_t h, int64_t w);

  // The plan for one input shape (h = w = 1 for rank 2); keep_all: every value keeps its memory
  // until the next run.
  std::shared_ptr<const MemoryPlan> plan(int64_t n, int64_t h, int64_t w, bool keep_all = false);
  // For tests: plans made from now on go by these.
  void debug(const PlanDebug& options);

 private:
  int64_t piece(int64_t n, int64_t h, int64_t w);  // images that run together
  const Node& value(int id, const char* what) const;
  int push(Node node);
  // A node of x's kind, range and channels.
  Node following(Op op, int x) const;
  void set_output_kind(Node& node, const Requantize& q);

  std::vector<Node> nodes_;
  int output_ = -1;
  PlanDebug debug_;
  std::mutex mutex_;
  using Key = std::tuple<int64_t, int64_t, int64_t, bool>;
  std::list<std::pair<Key, std::shared_ptr<const MemoryPlan>>> plans_;  // most recent first
};

// Everything that depends on the shape: grids, memory, offset tables, and what is done in which
// order. Immutable; each run brings its own arena.
class MemoryPlan {
 public:
  MemoryPlan(const std::vector<Node>& nodes, int output, int64_t n, int64_t h, int64_t w,
             bool keep_all, const PlanDebug& debug = {});
  int64_t arena_bytes() const { return arena_bytes_; }
  // Rows of the output at a time; 0: every value as a whole.
  int64_t band() const { return band_; }
  const std::vector<RowTask>& tasks() const { return tasks_; }
  // Where a value of a plan in bands lies: its memory, or -1 for the caller's own.
  int64_t memory(int id) const {
    const NodePlan& s = step(id);
    return s.external ? -1 : static_cast<int64_t>(s.memory);
  }
  // Rows that such a memory holds.
  int64_t rows(int id) const { return memories_[step(id).memory].rows; }
  const ActivationTensor& grid(int id) const { return steps_[static_cast<size_t>(id)].grid; }
  // Of a plan that keeps all.
  const uint8_t* value(int id, const Buffer& arena) const {
    return arena.data() + memories_[steps_[static_cast<size_t>(id)].memory].at;
  }
  // x: the network's input, NCHW float32. y: the output likewise, or null. profile: null, or one
  // entry a node.
  void run(const float* x, float* y, Buffer& arena,
           std::vector<NodeProfile>* profile = nullptr) const;
  int64_t macs(int id) const;
  Buffer take_arena() const;
  void give_arena(Buffer arena) const;

 private:
  Buffer used_arena() const;
  struct ConcatAlias {
    int concat = -1;     // in whose memory a value lies
    int64_t offset = 0;  // in packets, where it begins there
    bool holds = false;  // is it such a concat itself?
  };
  struct NodePlan {
    ActivationTensor grid;
    size_t memory = 0, scratch = 0;                     // of memories_
    std::map<int64_t, std::unique_ptr<ConvPlan>> conv;  // by conv_key
    bool by_rows = false;
    // The caller's own memory: an input that only quantize reads, or an output.
    bool external = false;
  };
  // One run: where everything is now.
  struct RunContext {
    const float* x;
    float* y;
    uint8_t* arena;
    std::vector<int64_t> first;  // bands: padded row of its values that a memory begins with
  };
  struct NodeTask {
    int id;
    const Node& node;
    const NodePlan& step;
    Rows rows;
    uint8_t* y;
  };
  void infer_shapes(int64_t n, int64_t h, int64_t w);
  void choose_halos();
  bool is_read(int id) const;
  void find_homes();
  void keep_short_homes(int64_t band);
  bool may_replace(size_t id) const;
  void place_whole(bool keep_all);
  bool place_bands(int64_t forced);
  void schedule_bands(int64_t band);
  std::vector<BandValue> band_values(size_t& memories) const;
  int64_t conv_key(size_t id, Rows rows) const;
  const ConvPlan& add_conv(size_t id, Rows of);
  // The first packet of a value, where all its rows would lie if they were there.
  uint8_t* data(const RunContext& f, int id) const;
  void move_down(const RowTask& task, RunContext& f) const;
  void run_task(const RowTask& task, const RunContext& f) const;
  void run_conv(const NodeTask& w, const RunContext& f) const;
  void run_quantize(const NodeTask& w, const RunContext& f) const;
  void run_dequantize(const NodeTask& w, const RunContext& f) const;
  void quantize_rows(const Node& node, const ActivationTensor& g, const float* x, uint8_t* y) const;
  void run_linear(const NodeTask& w, const RunContext& f) const;
  void run_max_pool(const NodeTask& w, const RunContext& f) const;
  void run_avg_pool(const NodeTask& w, const RunContext& f) const;
  void run_add(const NodeTask& w, const RunContext& f) const;
  void run_flatten(const NodeTask& w, const RunContext& f) const;
  bool infer_move(const Node& node, ActivationTensor& g) const;
  void run_move(const NodeTask& w, const RunContext& f) const;
  void run_concat(const NodeTask& w, const RunContext& f) const;
  void run_resize(const NodeTask& w, const RunContext& f) const;
  void run_activation(const NodeTask& w, const RunContext& f) const;
  void run_over_channels(const NodeTask& w, const RunContext& f) const;
  const NodePlan& step(int id) const { return steps_[static_cast<size_t>(id)]; }

  const std::vector<Node>& nodes_;
  int output_;
  std::vector<Pairs> pairs_;
  std::vector<NodePlan> steps_;
  std::vector<ConcatAlias> homes_;
  std::vector<RowTask> tasks_;
  struct Memory {
    int64_t at = 0, packets = 0, rows = 0;
  };
  std::vector<Memory> memories_;
  int64_t arena_bytes_ = 0, band_ = 0;
  bool poison_;
  mutable std::mutex mutex_;
  mutable std::vector<Buffer> arenas_;
};

}  // namespace tops
