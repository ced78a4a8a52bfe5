// SPDX-License-Identifier: Apache-2.0
// Shapes, halos and memory of one network at one input size.
#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <string>

#include "engine/engine.h"
#include "isa/error.h"

namespace tops {
namespace {

void need_features(int64_t wanted, int64_t given) {
  if (given == wanted) return;
  throw Error(ErrorKind::kUnsupportedShape,
              "this node needs " + std::to_string(wanted) + " features, got " +
                  std::to_string(given) +
                  ".\n  Use the image size that the network was compiled with.");
}

// A larger padding is rare, and a halo of its size would cost every layer at that resolution; such
// layers copy instead.
constexpr int64_t kMostHalo = 8;

}  // namespace

Residual residual_of(const std::vector<Node>& nodes, int id) {
  if (id < 0) return {};
  const Node& n = nodes[static_cast<size_t>(id)];
  return {true, n.is_float, n.scale, n.zero_point};
}

namespace {

// May the result take the place of the first operand? Every cell depends on the same cell of it.
bool works_in_place(const Node& node) {
  return node.op == Op::kActivation || node.op == Op::kAdd || node.op == Op::kMul ||
         node.op == Op::kClamp;
}

// Memory that is needed from one node to another.
struct Block {
  int64_t bytes;
  size_t born, until;
  int64_t at;
};

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Gives each block, in this order, the lowest place that no block of the same time holds; returns
// the bytes of all.
int64_t first_fit(std::vector<Block>& blocks, const std::vector<size_t>& order) {
  std::vector<const Block*> placed;  // by address
  int64_t bytes = 0;
  for (const size_t i : order) {
    Block& block = blocks[i];
    block.at = 0;
    for (const Block* other : placed) {
      if (other->until < block.born || block.until < other->born) continue;
      if (other->at - block.at >= block.bytes) break;
      block.at = std::max(block.at, other->at + other->bytes);
    }
    bytes = std::max(bytes, block.at + block.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &block,
                                   [](const Block* a, const Block* b) { return a->at < b->at; }),
                  &block);
  }
  return bytes;
}

}  // namespace

Plan::Plan(const std::vector<Node>& nodes, int output, int64_t n, int64_t h, int64_t w,
           bool keep_all)
    : nodes_(nodes) {
  steps_.resize(nodes.size());
  infer_shapes(n, h, w);
  choose_halos();
  prepare_steps();
  place(keep_all, output);
}

void Plan::infer_shapes(int64_t n, int64_t h, int64_t w) {
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    Grid& g = steps_[id].grid;
    if (node.op == Op::kInput) {
      g = Grid::make(node.channels, true, n, h, w, 0);
      continue;
    }
    if (infer_move(node, g)) continue;
    const Grid& in = step(node.a).grid;
    int64_t channels = node.channels ? node.channels : in.channels, oh = in.h, ow = in.w;
    const Window& win = node.window;
    if (node.op == Op::kConv || node.op == Op::kMaxPool || node.op == Op::kAvgPool) {
      const int64_t kh = node.op == Op::kConv ? node.layer->shape.r : node.kernel_h;
      const int64_t kw = node.op == Op::kConv ? node.layer->shape.s : node.kernel_w;
      oh = window_out(in.h, kh, win.stride_h, win.pad_h, win.dil_h, node.ceil);
      ow = window_out(in.w, kw, win.stride_w, win.pad_w, win.dil_w, node.ceil);
    } else if (node.op == Op::kAdaptiveAvgPool) {
      oh = node.out_h;
      ow = node.out_w;
    } else if (node.op == Op::kFlatten && !nodes_[static_cast<size_t>(node.a)].rank2) {
      channels = checked_mul(in.channels, checked_mul(in.h, in.w));
      oh = ow = 1;
    } else if (node.op == Op::kLinear) {
      need_features(node.layer->shape.i, in.channels);
    } else if (node.op == Op::kLayerNorm) {
      need_features(node.channels, in.channels);
    }
    if (node.b >= 0) {
      const Grid& other = step(node.b).grid;
      const bool spread = node.op == Op::kMul && other.h == 1 && other.w == 1;
      if (!spread && (other.h != oh || other.w != ow))
        throw Error(ErrorKind::kUnsupportedShape,
                    "the two inputs of node " + std::to_string(id) + " (" + op_name(node.op) +
                        ") have different sizes: " + std::to_string(oh) + "x" + std::to_string(ow) +
                        " and " + std::to_string(other.h) + "x" + std::to_string(other.w) + ".");
    }
    g = Grid::make(channels, node.is_float, n, oh, ow, 0);
  }
}

// All images of one size share one halo, so that a layer's output and its residual have the same
// layout as its input and whole vectors can be stored.
void Plan::choose_halos() {
  std::map<std::pair<int64_t, int64_t>, int64_t> halo;
  for (const Node& node : nodes_) {
    if (node.op != Op::kConv || node.window.stride_h > 1 || node.window.stride_w > 1) continue;
    const int64_t pad = std::max(node.window.pad_h, node.window.pad_w);
    const Grid& in = step(node.a).grid;
    int64_t& h = halo[{in.h, in.w}];
    if (pad <= kMostHalo) h = std::max(h, pad);
  }
  for (size_t id = 0; id < nodes_.size(); ++id) {
    Grid& g = steps_[id].grid;
    const auto it = halo.find({g.h, g.w});
    g = Grid::make(g.channels, g.is_float, g.n, g.h, g.w,
                   nodes_[id].rank2 || it == halo.end() ? 0 : it->second);
  }
}

void Plan::prepare_steps() {
  steps_[0].external = true;
  for (size_t id = 1; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    Step& s = steps_[id];
    const Node& from = nodes_[static_cast<size_t>(node.a)];
    for (const int input : inputs_of(node))
      if (input == 0 && node.op != Op::kQuantize) steps_[0].external = false;
    const Grid& in = step(node.a).grid;
    if (node.op == Op::kLinear && node.layer->by_rows(in.n)) {
      s.by_rows = true;
    } else if (node.op == Op::kConv || node.op == Op::kLinear) {
      const LayerWeights& l = *node.layer;
      s.conv = std::make_unique<ConvPlan>(l.view(), l.scale.data(), l.bias.data(),
                                          in.is_float ? 0 : from.zero_point, in, s.grid,
                                          node.window, residual_of(nodes_, node.b), node.requantize,
                                          l.slope.empty() ? nullptr : l.slope.data(), l.row_filter);
      s.scratch = s.conv->scratch_bytes();
    }
  }
}

// A value's memory is free again after its last reader. First fit, by time and by size: which of
// the two leaves fewer holes depends on the network.
void Plan::place(bool keep_all, int output) {
  std::vector<size_t> last(nodes_.size()), block_of(nodes_.size());
  for (size_t id = 0; id < nodes_.size(); ++id) {
    last[id] = keep_all || static_cast<int>(id) == output ? nodes_.size() : id;
    for (const int input : inputs_of(nodes_[id]))
      last[static_cast<size_t>(input)] = std::max(last[static_cast<size_t>(input)], id);
  }
  std::vector<Block> blocks;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    Step& s = steps_[id];
    if (s.external && !keep_all) continue;
    s.external = false;
    const size_t a = static_cast<size_t>(nodes_[id].a);
    if (works_in_place(nodes_[id]) && last[a] == id && s.grid.is_float == steps_[a].grid.is_float) {
      block_of[id] = block_of[a];
      blocks[block_of[id]].until = last[id];
      continue;
    }
    block_of[id] = blocks.size();
    blocks.push_back({round_up(s.grid.bytes()), id, last[id], 0});
    if (s.scratch) blocks.push_back({round_up(s.scratch), id, id, 0});
  }
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<Block> by_size = blocks;
  arena_bytes_ = first_fit(blocks, order);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  const int64_t other = first_fit(by_size, order);
  if (other < arena_bytes_) {
    arena_bytes_ = other;
    blocks = by_size;
  }
  for (size_t id = 0; id < nodes_.size(); ++id) {
    if (steps_[id].external) continue;
    steps_[id].at = blocks[block_of[id]].at;
    if (steps_[id].scratch) steps_[id].scratch_at = blocks[block_of[id] + 1].at;
  }
}

void Plan::run(const float* x, Buffer& arena, std::vector<NodeProfile>* profile) const {
  for (size_t id = 0; id < nodes_.size(); ++id) {
    if (!profile) {
      run_node(id, x, arena.data());
      continue;
    }
    const auto begin = std::chrono::steady_clock::now();
    run_node(id, x, arena.data());
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    const Node& node = nodes_[id];
    profile->push_back({op_name(node.op), took.count(), macs(static_cast<int>(id)),
                        node.layer ? node.layer->density : 1.0});
  }
}

int64_t Plan::macs(int id) const {
  const Node& node = nodes_[static_cast<size_t>(id)];
  if (!node.layer) return 0;
  const WeightShape& w = node.layer->shape;
  const Grid& g = step(id).grid;
  return g.n * g.h * g.w * w.o * w.r * w.s * w.i;
}

Buffer Plan::take_arena() const {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!arenas_.empty()) {
      Buffer b = std::move(arenas_.back());
      arenas_.pop_back();
      return b;
    }
  }
  return Buffer(arena_bytes_);
}

void Plan::give_arena(Buffer arena) const {
  std::lock_guard<std::mutex> lock(mutex_);
  arenas_.push_back(std::move(arena));
}

}  // namespace tops
