// SPDX-License-Identifier: Apache-2.0
// Shapes, halos and memory of one network at one input size.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>

#include "base/error.h"
#include "base/threads.h"
#include "program/program.h"
#include "program/row_pairs.h"

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

Operand operand_of(const std::vector<Node>& nodes, int id) {
  if (id < 0) return {};
  const Node& n = nodes[static_cast<size_t>(id)];
  return {true, n.is_float, n.scale, n.zero_point};
}

namespace {

// May the result take the place of the first operand? Every packet depends on the same packet of
// it.
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

MemoryPlan::MemoryPlan(const std::vector<Node>& nodes, int output, int64_t n, int64_t h, int64_t w,
                       bool keep_all, const PlanDebug& debug)
    : nodes_(nodes), output_(output), pairs_(row_pairs(nodes)), poison_(debug.poison) {
  steps_.resize(nodes.size());
  homes_.resize(nodes.size());
  infer_shapes(n, h, w);
  choose_halos();
  steps_[0].external = !keep_all && output != 0;
  for (const Node& node : nodes_)
    for (const int input : inputs_of(node))
      if (input == 0 && node.op != Op::kQuantize) steps_[0].external = false;
  NodePlan& last = steps_[static_cast<size_t>(output)];
  const ActivationTensor& out = last.grid;
  last.external = !keep_all && output != 0 && out.is_float && out.n == 1 && out.h * out.w > 1 &&
                  !out.halo && !is_read(output);
  if (last.external) last.grid.close_up();
  if (!keep_all) find_homes();
  if (keep_all || !place_bands(debug.band)) place_whole(keep_all);
}

// A part of a concat can be made where it is wanted, if it is nothing else's part, is padded alike,
// and its packets are the whole's.
void MemoryPlan::find_homes() {
  std::map<int, int> parts;  // of how many concats
  for (const Node& node : nodes_)
    if (node.op == Op::kConcat)
      for (const int part : node.detail->parts) ++parts[part];
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    if (node.op != Op::kConcat || node.rank2 || steps_[id].external) continue;
    int64_t offset = 0;
    for (const int part : node.detail->parts) {
      const ActivationTensor& g = step(part).grid;
      ConcatAlias& home = homes_[static_cast<size_t>(part)];
      const Node& made = nodes_[static_cast<size_t>(part)];
      const bool alike = node.is_float || (made.scale == node.scale &&
                                           made.zero_point == node.zero_point && offset % 4 == 0);
      if (alike && parts[part] == 1 && part != 0 && part != output_ && !home.holds &&
          g.halo == steps_[id].grid.halo) {
        home.concat = static_cast<int>(id);
        home.offset = node.is_float ? offset : offset / 4;
        homes_[id].holds = true;
      }
      offset += g.channels;
    }
  }
}

// May a value take the place of its first operand, if nothing else reads that?
bool MemoryPlan::may_replace(size_t id) const {
  const Node& node = nodes_[id];
  const NodePlan& s = steps_[id];
  if (!works_in_place(node) || s.external || homes_[id].concat >= 0) return false;
  const NodePlan& a = step(node.a);
  const ConcatAlias& home = homes_[static_cast<size_t>(node.a)];
  return home.concat < 0 && !home.holds && a.grid.is_float == s.grid.is_float && !a.external;
}

bool MemoryPlan::is_read(int id) const {
  for (const Node& node : nodes_)
    for (const int input : inputs_of(node))
      if (input == id) return true;
  return false;
}

void MemoryPlan::infer_shapes(int64_t n, int64_t h, int64_t w) {
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    ActivationTensor& g = steps_[id].grid;
    if (node.op == Op::kInput) {
      g = ActivationTensor::make(node.channels, true, n, h, w, 0);
      continue;
    }
    if (infer_move(node, g)) continue;
    const ActivationTensor& in = step(node.a).grid;
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
    for (const int id_of : {node.b, node.gate}) {
      if (id_of < 0) continue;
      const ActivationTensor& other = step(id_of).grid;
      const bool spread = node.op == Op::kMul && other.h == 1 && other.w == 1;
      if (!spread && (other.h != oh || other.w != ow))
        throw Error(ErrorKind::kUnsupportedShape,
                    "the two inputs of node " + std::to_string(id) + " (" + op_name(node.op) +
                        ") have different sizes: " + std::to_string(oh) + "x" + std::to_string(ow) +
                        " and " + std::to_string(other.h) + "x" + std::to_string(other.w) + ".");
    }
    g = ActivationTensor::make(channels, node.is_float, n, oh, ow, 0);
  }
}

// All images of one size share one halo, so that a layer's output and its residual have the same
// layout as its input and whole vectors can be stored.
void MemoryPlan::choose_halos() {
  std::map<std::pair<int64_t, int64_t>, int64_t> halo;
  for (const Node& node : nodes_) {
    if (node.op != Op::kConv || node.window.stride_h > 1 || node.window.stride_w > 1) continue;
    const int64_t pad = std::max(node.window.pad_h, node.window.pad_w);
    const ActivationTensor& in = step(node.a).grid;
    int64_t& h = halo[{in.h, in.w}];
    if (pad <= kMostHalo) h = std::max(h, pad);
  }
  for (size_t id = 0; id < nodes_.size(); ++id) {
    ActivationTensor& g = steps_[id].grid;
    const auto it = halo.find({g.h, g.w});
    g = ActivationTensor::make(g.channels, g.is_float, g.n, g.h, g.w,
                               nodes_[id].rank2 || it == halo.end() ? 0 : it->second);
  }
}

// Strips of one height share a plan, but for the top of pairs that begin at odd rows.
int64_t MemoryPlan::conv_key(size_t id, Rows rows) const {
  const bool top = rows.begin == 0 && pairs_[id] == Pairs::kOdd;
  return (rows.end - rows.begin) * 2 + (top ? 1 : 0);
}

const ConvPlan& MemoryPlan::add_conv(size_t id, Rows of) {
  const Node& node = nodes_[id];
  std::unique_ptr<ConvPlan>& made = steps_[id].conv[conv_key(id, of)];
  if (made) return *made;
  const int64_t rows = of.end - of.begin;
  const Pairs pairs = of.begin && pairs_[id] == Pairs::kOdd ? Pairs::kEven : pairs_[id];
  const Node& from = nodes_[static_cast<size_t>(node.a)];
  const LayerWeights& l = *node.layer;
  ActivationTensor in = step(node.a).grid, out = step(static_cast<int>(id)).grid;
  Window window = node.window;
  const auto operand = [&](int other) {
    Operand read = operand_of(nodes_, other);
    if (read.present) read.channel_stride = step(other).grid.channel_stride;
    return read;
  };
  if (band_) {  // the padding is there, as rows like others
    const Rows read = rows_read(node, in, out, {0, rows});
    in = in.strip(read.end - read.begin);
    out = out.strip(rows);
    window.pad_h = 0;
  }
  ConvSpec spec{l.view(), l.scale.data()};
  spec.bias = l.bias.data();
  spec.slope = l.slope.empty() ? nullptr : l.slope.data();
  spec.x_zero_point = in.is_float ? 0 : from.zero_point;
  spec.window = window;
  spec.requantize = node.requantize;
  spec.residual = operand(node.b);
  spec.gate = operand(node.gate);
  spec.row_filter = l.row_filter;
  spec.pairs = pairs;
  made = std::make_unique<ConvPlan>(spec, in, out);
  return *made;
}

// A value's memory is free again after its last reader. First fit, by time and by size: which of
// the two leaves fewer holes depends on the network.
void MemoryPlan::place_whole(bool keep_all) {
  std::vector<size_t> last(nodes_.size());
  for (size_t id = 0; id < nodes_.size(); ++id) {
    last[id] = keep_all || static_cast<int>(id) == output_ ? nodes_.size() : id;
    for (const int input : inputs_of(nodes_[id]))
      last[static_cast<size_t>(input)] = std::max(last[static_cast<size_t>(input)], id);
  }
  std::vector<Block> blocks;
  std::map<size_t, size_t> homes;  // block of each concat that others lie in
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    NodePlan& s = steps_[id];
    tasks_.push_back({static_cast<int>(id), {0, s.grid.h}, 0, 0});
    const size_t a = static_cast<size_t>(node.a);
    if (may_replace(id) && last[a] == id) {
      s.memory = steps_[a].memory;
      blocks[s.memory].until = last[id];
      continue;
    }
    const int home = homes_[id].concat;
    const size_t owner = home < 0 ? id : static_cast<size_t>(home);
    const auto made = homes.find(owner);
    s.memory = made == homes.end() ? blocks.size() : made->second;
    if (made == homes.end()) {
      const int64_t bytes = round_up(steps_[owner].grid.bytes());
      blocks.push_back({s.external ? 0 : bytes, id, last[id], 0});
      if (home >= 0) homes[owner] = s.memory;
    }
    blocks[s.memory].until = std::max(blocks[s.memory].until, last[id]);
    s.by_rows = node.op == Op::kLinear && node.layer->use_gemv(step(node.a).grid.n);
    if (s.by_rows || (node.op != Op::kConv && node.op != Op::kLinear)) continue;
    if (const int64_t scratch = add_conv(id, {0, s.grid.h}).scratch_bytes()) {
      s.scratch = blocks.size();
      blocks.push_back({round_up(scratch), id, id, 0});
    }
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
  for (const Block& block : blocks) memories_.push_back({block.at, 0, 0});
}

void MemoryPlan::run(const float* x, float* y, Buffer& arena,
                     std::vector<NodeProfile>* profile) const {
  const NodePlan& last = step(output_);
  Buffer unwanted(!y && last.external ? last.grid.packets * last.grid.channel_stride * 4 : 0);
  RunContext f{x, y ? y : reinterpret_cast<float*>(unwanted.data()), arena.data(), {}};
  if (band_) f.first.assign(memories_.size(), 0);
  if (profile)
    for (size_t id = 0; id < nodes_.size(); ++id)
      profile->push_back({op_name(nodes_[id].op), 0.0, macs(static_cast<int>(id)),
                          nodes_[id].layer ? nodes_[id].layer->density : 1.0});
  for (const RowTask& task : tasks_) {
    std::chrono::steady_clock::time_point begin;
    if (profile) begin = std::chrono::steady_clock::now();
    if (task.drop) move_down(task, f);
    run_task(task, f);
    if (profile) {
      const std::chrono::duration<double, std::milli> took =
          std::chrono::steady_clock::now() - begin;
      (*profile)[static_cast<size_t>(task.id)].ms += took.count();
    }
    if (y && task.id == output_ && !last.external)
      tensor_to_nchw(last.grid, task.rows, data(f, output_), y);
  }
}

int64_t MemoryPlan::macs(int id) const {
  const Node& node = nodes_[static_cast<size_t>(id)];
  if (!node.layer) return 0;
  const WeightShape& w = node.layer->shape;
  const ActivationTensor& g = step(id).grid;
  return g.n * g.h * g.w * w.o * w.r * w.s * w.i;
}

Buffer MemoryPlan::take_arena() const {
  Buffer arena = used_arena();
  if (!arena.data()) arena = Buffer(arena_bytes_);
  if (poison_) std::memset(arena.data(), 0xff, static_cast<size_t>(arena.size()));
  return arena;
}

// Of a run before; none: without memory.
Buffer MemoryPlan::used_arena() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (arenas_.empty()) return {};
  Buffer arena = std::move(arenas_.back());
  arenas_.pop_back();
  return arena;
}

void MemoryPlan::give_arena(Buffer arena) const {
  std::lock_guard<std::mutex> lock(mutex_);
  arenas_.push_back(std::move(arena));
}

}  // namespace tops
