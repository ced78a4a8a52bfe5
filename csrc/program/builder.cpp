// SPDX-License-Identifier: Apache-2.0
// Adding nodes that move, blend or map values; what has weights or windows is in engine.cpp.
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/scalar_math.h"
#include "program/program.h"

namespace tops {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

[[noreturn]] void bad_graph(const std::string& what) {
  throw Error(ErrorKind::kUnsupportedModel, what);
}

struct Named {
  const char* name;
  Function function;
  size_t params;
};

const Named kFunctions[] = {
    {"affine", Function::kAffine, 2},
    {"leaky_relu", Function::kLeakyRelu, 1},
    {"hardswish", Function::kHardswish, 0},
    {"hardsigmoid", Function::kHardsigmoid, 0},
    {"silu", Function::kSilu, 0},
    {"sigmoid", Function::kSigmoid, 0},
    {"tanh", Function::kTanh, 0},
    {"gelu", Function::kGelu, 0},
    {"gelu_tanh", Function::kGeluTanh, 0},
    {"elu", Function::kElu, 1},
    {"softplus", Function::kSoftplus, 2},
    {"mish", Function::kMish, 0},
    {"exp", Function::kExp, 0},
};

Function function_of(const std::string& name, size_t params) {
  for (const Named& f : kFunctions)
    if (name == f.name && params == f.params) return f.function;
  bad_graph("there is no function " + name + " with " + std::to_string(params) + " parameters.");
}

}  // namespace

std::vector<int> inputs_of(const Node& node) {
  if (node.op == Op::kConcat) return node.detail->parts;
  std::vector<int> inputs;
  for (const int id : {node.a, node.b, node.gate})
    if (id >= 0) inputs.push_back(id);
  return inputs;
}

Node Engine::following(Op op, int x) const {
  const Node& in = value(x, op_name(op));
  Node n;
  n.op = op;
  n.a = x;
  n.channels = in.channels;
  n.is_float = in.is_float;
  n.rank2 = in.rank2;
  n.scale = in.scale;
  n.zero_point = in.zero_point;
  return n;
}

int Engine::activation(int x, const std::string& function, const std::vector<float>& params,
                       const std::vector<float>& table, float y_scale, int y_zero_point) {
  Node n = following(Op::kActivation, x);
  auto d = std::make_shared<Detail>();
  d->function = function_of(function, params.size());
  d->params = params;
  d->table = table;
  if (table.size() != (n.is_float ? 0u : 256u))
    bad_graph("a function of u8 needs a table of 256 values, one of floats none.");
  if (n.is_float && y_scale != 0.0f) bad_graph("a function of floats makes floats.");
  set_output_kind(n, {-kInf, kInf, y_scale, y_zero_point});
  if (!n.is_float) {
    const Epilogue e = make_epilogue(n.requantize, {});
    for (const float v : table) d->codes.push_back(to_code(v, e));
  }
  n.detail = std::move(d);
  return push(std::move(n));
}

int Engine::mul(int a, int b, float lo, float hi, float y_scale, int y_zero_point) {
  Node n = following(Op::kMul, a);
  const Node& other = value(b, "mul");
  n.b = b;
  if (other.channels != n.channels || other.rank2 != n.rank2 || other.is_float != n.is_float)
    bad_graph("mul needs two values of one kind with the same channels.");
  set_output_kind(n, {lo, hi, y_scale, y_zero_point});
  return push(std::move(n));
}

int Engine::concat(const std::vector<int>& parts, float y_scale, int y_zero_point) {
  if (parts.size() < 2) bad_graph("concat needs two values or more.");
  Node n = following(Op::kConcat, parts[0]);
  int64_t channels = 0;
  bool known = true;
  for (const int part : parts) {
    const Node& in = value(part, "concat");
    if (in.rank2 != n.rank2 || in.is_float != n.is_float)
      bad_graph("concat needs values of one kind.");
    known = known && in.channels > 0;
    channels += in.channels;
  }
  if (n.is_float != (y_scale == 0.0f)) bad_graph("a concat of u8 makes u8, one of floats floats.");
  set_output_kind(n, {-kInf, kInf, y_scale, y_zero_point});
  n.channels = known ? channels : 0;
  auto d = std::make_shared<Detail>();
  d->parts = parts;
  n.detail = std::move(d);
  return push(std::move(n));
}

int Engine::slice(int x, int64_t begin, int64_t end) {
  Node n = following(Op::kSlice, x);
  if (n.rank2 || begin < 0 || begin >= end || end > n.channels)
    bad_graph("slice needs an image and channels 0 <= begin < end <= " +
              std::to_string(n.channels) + ".");
  auto d = std::make_shared<Detail>();
  d->begin = begin;
  n.channels = end - begin;
  n.detail = std::move(d);
  return push(std::move(n));
}

int Engine::pixel_shuffle(int x, const Pair& factor, const Pair& crop) {
  Node n = following(Op::kPixelShuffle, x);
  const auto [fh, fw] = factor;
  if (n.rank2 || fh < 1 || fw < 1 || crop.first < 0 || crop.second < 0 ||
      n.channels % checked_mul(fh, fw))
    bad_graph("pixel_shuffle needs an image whose channels divide by its factors.");
  auto d = std::make_shared<Detail>();
  d->factor_h = fh;
  d->factor_w = fw;
  d->crop_h = crop.first;
  d->crop_w = crop.second;
  n.channels /= fh * fw;
  n.detail = std::move(d);
  return push(std::move(n));
}

int Engine::pixel_unshuffle(int x, const Pair& factor) {
  Node n = following(Op::kPixelUnshuffle, x);
  if (n.rank2 || factor.first < 1 || factor.second < 1)
    bad_graph("pixel_unshuffle needs an image and factors of at least 1.");
  auto d = std::make_shared<Detail>();
  d->factor_h = factor.first;
  d->factor_w = factor.second;
  n.channels = checked_mul(n.channels, checked_mul(factor.first, factor.second));
  n.detail = std::move(d);
  return push(std::move(n));
}

int Engine::channel_shuffle(int x, int64_t groups) {
  Node n = following(Op::kChannelShuffle, x);
  if (n.rank2 || groups < 1 || n.channels % groups)
    bad_graph("channel_shuffle needs an image whose channels divide by its groups.");
  auto d = std::make_shared<Detail>();
  d->groups = groups;
  n.detail = std::move(d);
  return push(std::move(n));
}

int Engine::resize(int x, int like, bool bilinear, bool align, const Pair& size,
                   const std::pair<float, float>& zoom) {
  Node n = following(Op::kResize, x);
  n.b = like;
  const bool sized = size.first > 0 && size.second > 0, zoomed = zoom.first > 0 && zoom.second > 0;
  if (n.rank2 || (like >= 0 && value(like, "resize").rank2) ||
      static_cast<int>(sized) + static_cast<int>(zoomed) + static_cast<int>(like >= 0) != 1)
    bad_graph("resize needs an image and one of size, zoom and a value to be as large as.");
  auto d = std::make_shared<Detail>();
  d->bilinear = bilinear;
  d->align = align;
  d->out_h = sized ? size.first : 0;
  d->out_w = sized ? size.second : 0;
  d->zoom_h = zoomed ? zoom.first : 0.0f;
  d->zoom_w = zoomed ? zoom.second : 0.0f;
  n.detail = std::move(d);
  return push(std::move(n));
}

// All channels of an image of one pixel: a slice of everything.
int Engine::unflatten(int x) {
  Node n = following(Op::kSlice, x);
  if (!n.rank2 || n.channels < 1) bad_graph("unflatten needs rows of known length.");
  n.rank2 = false;
  n.detail = std::make_shared<Detail>();
  return push(std::move(n));
}

int Engine::softmax(int x) {
  Node n = following(Op::kSoftmax, x);
  if (!n.is_float) bad_graph("softmax needs floats.");
  return push(std::move(n));
}

int Engine::layer_norm(int x, const std::vector<float>& weight, const std::vector<float>& bias,
                       float eps) {
  Node n = following(Op::kLayerNorm, x);
  const auto width = static_cast<int64_t>(weight.size());
  const bool fits = n.channels == 0 || n.channels == width;  // 0: checked once the size is known
  if (!n.is_float || width == 0 || !fits || bias.size() != weight.size() || !(eps > 0.0f))
    bad_graph("layer_norm needs floats, a weight and a bias a channel, and eps > 0.");
  n.channels = width;
  auto d = std::make_shared<Detail>();
  d->params = weight;
  d->params.insert(d->params.end(), bias.begin(), bias.end());
  d->eps = eps;
  n.detail = std::move(d);
  return push(std::move(n));
}

}  // namespace tops
