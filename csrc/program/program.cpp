// SPDX-License-Identifier: Apache-2.0
#include "program/program.h"

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "ops/linear.h"

namespace tops {
namespace {

constexpr size_t kPlans = 8;

[[noreturn]] void bad_graph(const std::string& what) {
  throw Error(ErrorKind::kUnsupportedModel, what);
}

void check_quantization(float scale, int64_t zero_point) {
  // The bounds keep 1 / scale and every product finite.
  if (!(scale >= 1e-30f && scale <= 1e30f) || zero_point < 0 || zero_point > 255)
    bad_graph("a u8 value needs a scale in 1e-30..1e30 and a zero point in 0..255, got " +
              std::to_string(scale) + " and " + std::to_string(zero_point) + ".");
}

}  // namespace

const char* op_name(Op op) {
  static const char* const names[] = {"input",
                                      "quantize",
                                      "dequantize",
                                      "conv2d",
                                      "linear",
                                      "max_pool2d",
                                      "avg_pool2d",
                                      "adaptive_avg_pool2d",
                                      "add",
                                      "clamp",
                                      "flatten",
                                      "activation",
                                      "mul",
                                      "concat",
                                      "slice",
                                      "pixel_shuffle",
                                      "pixel_unshuffle",
                                      "channel_shuffle",
                                      "resize",
                                      "softmax",
                                      "layer_norm"};
  return names[static_cast<size_t>(op)];
}

Engine::Engine() = default;
Engine::~Engine() = default;

const Node& Engine::value(int id, const char* what) const {
  if (id < 0 || static_cast<size_t>(id) >= nodes_.size())
    bad_graph(std::string(what) + ": there is no value " + std::to_string(id) + ".");
  return nodes_[static_cast<size_t>(id)];
}

int Engine::push(Node node) {
  nodes_.push_back(std::move(node));
  return static_cast<int>(nodes_.size()) - 1;
}

void Engine::set_output_kind(Node& node, const Requantize& q) {
  node.requantize = q;
  node.is_float = q.y_scale == 0.0f;
  if (!node.is_float) {
    check_quantization(q.y_scale, q.y_zero_point);
    node.scale = q.y_scale;
    node.zero_point = q.y_zero_point;
  }
  if (std::isnan(q.lo) || std::isnan(q.hi) || q.lo > q.hi)
    bad_graph("an activation needs lo <= hi.");
}

int Engine::input(int64_t channels, int rank) {
  if (!nodes_.empty()) bad_graph("the input is the first node of a program.");
  if (channels < 1 || (rank != 2 && rank != 4))
    bad_graph("the input needs at least one channel and rank 2 or 4.");
  Node n;
  n.channels = channels;
  n.is_float = true;
  n.rank2 = rank == 2;
  return push(std::move(n));
}

int Engine::quantize(int x, float scale, int zero_point, bool fine) {
  const Node& in = value(x, "quantize");
  if (!in.is_float) bad_graph("quantize needs a float value.");
  check_quantization(scale, zero_point);
  Node n;
  if (fine && in.rank2) bad_graph("a fine quantize needs an image, got a rank-2 value.");
  n.op = Op::kQuantize;
  n.a = x;
  n.fine = fine;
  n.channels = fine ? divide_up(in.channels, 4) * 8 : in.channels;
  n.rank2 = in.rank2;
  n.scale = scale;
  n.zero_point = zero_point;
  return push(std::move(n));
}

int Engine::dequantize(int x) {
  const Node& in = value(x, "dequantize");
  if (in.is_float) bad_graph("dequantize needs a u8 value.");
  Node n;
  n.op = Op::kDequantize;
  n.a = x;
  n.channels = in.channels;
  n.rank2 = in.rank2;
  n.is_float = true;
  return push(std::move(n));
}

// Layers multiply like with like; linear ones also floats with integer weights.
static void check_kinds(const Node& x, Weights kind) {
  if (x.is_float != (kind == Weights::kFloat))
    bad_graph(
        "u8 values need integer weights and float values float ones: insert quantize or "
        "dequantize.");
}

int Engine::conv2d(int x, int residual, int gate, const ConvWeights& w, const Window& window,
                   const Requantize& q) {
  const Node& in = value(x, "conv2d");
  Node n;
  n.op = Op::kConv;
  n.a = x;
  n.b = residual;
  if (in.rank2) bad_graph("conv2d needs an image, got a rank-2 value.");
  if (in.channels != w.shape.channels())
    bad_graph("conv2d needs " + std::to_string(w.shape.channels()) + " channels, got " +
              std::to_string(in.channels) + ".");
  for (const int other : {residual, gate})
    if (other >= 0 && value(other, "conv2d").channels != w.shape.o)
      bad_graph("residual and gate of conv2d need " + std::to_string(w.shape.o) + " channels.");
  n.gate = gate;
  check_kinds(in, w.kind);
  n.layer = std::make_shared<LayerWeights>(w, LayerWeights::Layer::kConv,
                                           in.is_float ? nullptr : &window);
  n.channels = w.shape.o;
  n.window = window;
  set_output_kind(n, q);
  return push(std::move(n));
}

int Engine::linear(int x, int residual, const ConvWeights& w, const Requantize& q) {
  const Node& in = value(x, "linear");
  Node n;
  n.op = Op::kLinear;
  n.a = x;
  n.b = residual;
  n.rank2 = true;
  if (!in.rank2) bad_graph("linear needs a rank-2 value: flatten the image first.");
  if (w.shape.r != 1 || w.shape.s != 1 || w.shape.groups != 1)
    bad_graph("linear weights have no taps and no groups.");
  if (in.channels != 0 &&
      in.channels != w.shape.i)  // 0: a flattened image, checked once its size is known
    bad_graph("linear needs " + std::to_string(w.shape.i) + " features, got " +
              std::to_string(in.channels) + ".");
  if (residual >= 0 && value(residual, "linear residual").channels != w.shape.o)
    bad_graph("the residual of linear needs " + std::to_string(w.shape.o) + " features.");
  const bool weight_only = in.is_float && w.kind != Weights::kFloat;
  if (!weight_only) check_kinds(in, w.kind);
  n.layer = std::make_shared<LayerWeights>(
      w, weight_only ? LayerWeights::Layer::kWeightOnly : LayerWeights::Layer::kLinear, nullptr);
  n.channels = w.shape.o;
  set_output_kind(n, q);
  return push(std::move(n));
}

int Engine::max_pool2d(int x, int64_t kh, int64_t kw, const Window& window, bool ceil) {
  Node n = following(Op::kMaxPool, x);
  if (n.rank2) bad_graph("a pool needs an image.");
  if (2 * window.pad_h > kh || 2 * window.pad_w > kw)
    bad_graph("pool padding may be at most half the window.");
  n.window = window;
  n.kernel_h = kh;
  n.kernel_w = kw;
  n.ceil = ceil;
  return push(std::move(n));
}

int Engine::avg_pool2d(int x, int64_t kh, int64_t kw, const Window& window, bool ceil,
                       bool include_pad, int64_t divisor, const Requantize& q) {
  const Node& in = value(x, "avg_pool2d");
  if (in.rank2) bad_graph("a pool needs an image.");
  if (2 * window.pad_h > kh || 2 * window.pad_w > kw)
    bad_graph("pool padding may be at most half the window.");
  Node n;
  n.op = Op::kAvgPool;
  n.a = x;
  n.channels = in.channels;
  n.window = window;
  n.kernel_h = kh;
  n.kernel_w = kw;
  n.ceil = ceil;
  n.include_pad = include_pad;
  n.divisor = divisor;
  set_output_kind(n, q);
  return push(std::move(n));
}

int Engine::adaptive_avg_pool2d(int x, int64_t oh, int64_t ow, const Requantize& q) {
  const Node& in = value(x, "adaptive_avg_pool2d");
  if (in.rank2) bad_graph("a pool needs an image.");
  if (oh < 1 || ow < 1) bad_graph("adaptive_avg_pool2d needs an output of at least 1 x 1.");
  Node n;
  n.op = Op::kAdaptiveAvgPool;
  n.a = x;
  n.channels = in.channels;
  n.out_h = oh;
  n.out_w = ow;
  set_output_kind(n, q);
  return push(std::move(n));
}

int Engine::add(int a, int b, const Requantize& q) {
  const Node& in = value(a, "add");
  Node n;
  n.op = b < 0 ? Op::kClamp : Op::kAdd;
  n.a = a;
  n.b = b;
  n.channels = in.channels;
  n.rank2 = in.rank2;
  if (b >= 0) {
    const Node& other = value(b, "add");
    if (other.channels != in.channels || other.rank2 != in.rank2)
      bad_graph("add needs two values of the same shape.");
  }
  set_output_kind(n, q);
  return push(std::move(n));
}

int Engine::flatten(int x) {
  Node n = following(Op::kFlatten, x);
  if (!n.rank2) n.channels = 0;
  n.rank2 = true;
  return push(std::move(n));
}

void Engine::output(int x) {
  if (!value(x, "output").is_float)
    bad_graph("the output of a program is float: end with dequantize.");
  output_ = x;
}

std::shared_ptr<const MemoryPlan> Engine::plan(int64_t n, int64_t h, int64_t w, bool keep_all) {
  if (output_ < 0) bad_graph("the program has no output.");
  const Key key{n, h, w, keep_all};
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = plans_.begin(); it != plans_.end(); ++it)
    if (it->first == key) {
      plans_.splice(plans_.begin(), plans_, it);
      return it->second;
    }
  auto made = std::make_shared<const MemoryPlan>(nodes_, output_, n, h, w, keep_all, debug_);
  plans_.emplace_front(key, made);
  if (plans_.size() > kPlans) plans_.pop_back();
  return made;
}

void Engine::debug(const PlanDebug& options) {
  std::lock_guard<std::mutex> lock(mutex_);
  debug_ = options;
  plans_.clear();
}

}  // namespace tops
