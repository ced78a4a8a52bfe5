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

#include "engine/conv.h"
#include "engine/layer.h"

namespace tops {

enum class Op {
  kInput,
  kQuantize,
  kDequantize,
  kConv,
  kLinear,
  kMaxPool,
  kAvgPool,
  kAdaptiveAvgPool,
  kAdd,
  kClamp,
  kFlatten,
  kActivation,
  kMul,
  kConcat,
  kSlice,
  kPixelShuffle,
  kPixelUnshuffle,
  kChannelShuffle,
  kResize,
  kSoftmax,
  kLayerNorm
};

const char* op_name(Op op);

enum class Function {
  kAffine,
  kLeakyRelu,
  kHardswish,
  kHardsigmoid,
  kSilu,
  kSigmoid,
  kTanh,
  kGelu,
  kGeluTanh,
  kElu,
  kSoftplus,
  kMish,
  kExp
};

// What only some nodes need.
struct Detail {
  std::vector<int> parts;  // concat: every input
  Function function = Function::kAffine;
  std::vector<float> params;   // of the function; layer_norm: weight, then bias
  std::vector<float> table;    // function of a u8 value: what each code becomes, as floats
  std::vector<uint8_t> codes;  // and as codes of the output
  int64_t factor_h = 1, factor_w = 1, crop_h = 0, crop_w = 0;
  int64_t begin = 0, groups = 1;  // slice, channel_shuffle
  int64_t out_h = 0, out_w = 0;   // resize; 0: by zoom, or as large as the second input
  float zoom_h = 0, zoom_w = 0, eps = 0;
  bool bilinear = false, align = false;
};

struct Node {
  Op op = Op::kInput;
  int a = -1, b = -1;    // inputs
  int64_t channels = 0;  // of the output; flatten: 0 (depends on the image)
  bool is_float = false, rank2 = false;
  float scale = 1.0f;  // of the output, u8
  int32_t zero_point = 0;
  Requantize requantize{};
  std::shared_ptr<LayerWeights> layer;
  Window window;
  int64_t kernel_h = 1, kernel_w = 1, divisor = 0, out_h = 0, out_w = 0;
  bool ceil = false, include_pad = true;
  std::shared_ptr<const Detail> detail;
};

// Every value that a node reads.
std::vector<int> inputs_of(const Node& node);

struct NodeProfile {
  std::string op;
  double ms = 0;
  int64_t macs = 0;
  double density = 1.0;
};

// The value that node `id` adds to its result; none where id is negative.
Residual residual_of(const std::vector<Node>& nodes, int id);

class Plan;

class Engine {
 public:
  Engine();
  ~Engine();
  int input(int64_t channels, int rank);
  int quantize(int x, float scale, int zero_point);
  int dequantize(int x);
  int conv2d(int x, int residual, const ConvWeights& w, const Window& window, const Requantize& q);
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
  std::shared_ptr<const Plan> plan(int64_t n, int64_t h, int64_t w, bool keep_all = false);

 private:
  int64_t piece(int64_t n, int64_t h, int64_t w);  // images that run together
  const Node& value(int id, const char* what) const;
  int push(Node node);
  // A node of x's kind, range and channels.
  Node following(Op op, int x) const;
  void set_output_kind(Node& node, const Requantize& q);

  std::vector<Node> nodes_;
  int output_ = -1;
  std::mutex mutex_;
  using Key = std::tuple<int64_t, int64_t, int64_t, bool>;
  std::list<std::pair<Key, std::shared_ptr<const Plan>>> plans_;  // most recent first
};

// Everything that depends on the shape: grids, memory, offset tables. Immutable; each run brings
// its own arena.
class Plan {
 public:
  Plan(const std::vector<Node>& nodes, int output, int64_t n, int64_t h, int64_t w, bool keep_all);
  int64_t arena_bytes() const { return arena_bytes_; }
  const Grid& grid(int id) const { return steps_[static_cast<size_t>(id)].grid; }
  const uint8_t* value(int id, const Buffer& arena) const {
    return arena.data() + steps_[static_cast<size_t>(id)].at;
  }
  // x: the network's input, NCHW float32. profile: null, or one entry a node.
  void run(const float* x, Buffer& arena, std::vector<NodeProfile>* profile = nullptr) const;
  int64_t macs(int id) const;
  Buffer take_arena() const;
  void give_arena(Buffer arena) const;

 private:
  struct Step {
    Grid grid;
    int64_t at = 0, scratch_at = 0, scratch = 0;
    std::unique_ptr<ConvPlan> conv;
    bool by_rows = false, external = false;
  };
  void infer_shapes(int64_t n, int64_t h, int64_t w);
  void choose_halos();
  void prepare_steps();
  void place(bool keep_all, int output);
  void run_node(size_t id, const float* x, uint8_t* arena) const;
  void run_quantize(const Node& node, const Step& step, const float* x, uint8_t* arena) const;
  void run_dequantize(const Node& node, const Step& step, uint8_t* arena) const;
  void quantize_rows(const Node& node, const Grid& g, const float* x, uint8_t* y) const;
  void run_linear(const Node& node, const Step& step, uint8_t* arena) const;
  void run_max_pool(const Node& node, const Step& step, uint8_t* arena) const;
  void run_avg_pool(const Node& node, const Step& step, uint8_t* arena) const;
  void run_add(const Node& node, const Step& step, uint8_t* arena) const;
  void run_flatten(const Node& node, const Step& step, uint8_t* arena) const;
  bool infer_move(const Node& node, Grid& g) const;
  void run_move(const Node& node, const Step& step, uint8_t* arena) const;
  void run_concat(const Node& node, const Step& step, uint8_t* arena) const;
  void run_resize(const Node& node, const Step& step, uint8_t* arena) const;
  void run_activation(const Node& node, const Step& step, uint8_t* arena) const;
  void run_over_channels(const Node& node, const Step& step, uint8_t* arena) const;
  const Step& step(int id) const { return steps_[static_cast<size_t>(id)]; }

  const std::vector<Node>& nodes_;
  std::vector<Step> steps_;
  int64_t arena_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<Buffer> arenas_;
};

}  // namespace tops
