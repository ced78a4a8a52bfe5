// SPDX-License-Identifier: Apache-2.0
// Shapes, halos and memory of one network at one input size.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <string>

#include "engine/engine.h"
#include "engine/threads.h"
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

// A network goes through the image in bands where one of its values takes more than this: a core's
// second-level cache holds it beside the values it is made from.
constexpr int64_t kLargestWhole = 256 * 1024;
// What a band makes of its largest value.
constexpr int64_t kBandBytes = 512 * 1024;

}  // namespace

Operand operand_of(const std::vector<Node>& nodes, int id) {
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
    : nodes_(nodes), output_(output) {
  steps_.resize(nodes.size());
  infer_shapes(n, h, w);
  choose_halos();
  steps_[0].external = !keep_all && output != 0;
  for (const Node& node : nodes_)
    for (const int input : inputs_of(node))
      if (input == 0 && node.op != Op::kQuantize) steps_[0].external = false;
  Step& last = steps_[static_cast<size_t>(output)];
  const Grid& out = last.grid;
  last.external = !keep_all && output != 0 && out.is_float && out.n == 1 && out.h * out.w > 1 &&
                  !out.halo && !is_read(output);
  if (last.external) last.grid.close_up();
  if (keep_all || !place_bands()) place_whole(keep_all);
}

bool Plan::is_read(int id) const {
  for (const Node& node : nodes_)
    for (const int input : inputs_of(node))
      if (input == id) return true;
  return false;
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
    for (const int id_of : {node.b, node.gate}) {
      if (id_of < 0) continue;
      const Grid& other = step(id_of).grid;
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

const ConvPlan& Plan::add_conv(size_t id, int64_t rows) {
  const Node& node = nodes_[id];
  std::unique_ptr<ConvPlan>& made = steps_[id].conv[rows];
  if (made) return *made;
  const Node& from = nodes_[static_cast<size_t>(node.a)];
  const LayerWeights& l = *node.layer;
  Grid in = step(node.a).grid, out = step(static_cast<int>(id)).grid;
  Window window = node.window;
  const auto operand = [&](int other) {
    Operand read = operand_of(nodes_, other);
    if (read.present) read.plane = step(other).grid.plane;
    return read;
  };
  if (band_) {  // the padding is there, as rows like others
    const Rows read = rows_read(node, in, out, {0, rows});
    in = in.strip(read.end - read.begin);
    out = out.strip(rows);
    window.pad_h = 0;
  }
  made = std::make_unique<ConvPlan>(
      l.view(), l.scale.data(), l.bias.data(), in.is_float ? 0 : from.zero_point, in, out, window,
      operand(node.b), node.requantize, l.slope.empty() ? nullptr : l.slope.data(), l.row_filter,
      operand(node.gate));
  return *made;
}

// A value's memory is free again after its last reader. First fit, by time and by size: which of
// the two leaves fewer holes depends on the network.
void Plan::place_whole(bool keep_all) {
  std::vector<size_t> last(nodes_.size());
  for (size_t id = 0; id < nodes_.size(); ++id) {
    last[id] = keep_all || static_cast<int>(id) == output_ ? nodes_.size() : id;
    for (const int input : inputs_of(nodes_[id]))
      last[static_cast<size_t>(input)] = std::max(last[static_cast<size_t>(input)], id);
  }
  std::vector<Block> blocks;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    Step& s = steps_[id];
    tasks_.push_back({static_cast<int>(id), {0, s.grid.h}, 0, 0});
    const size_t a = static_cast<size_t>(node.a);
    if (!s.external && works_in_place(node) && last[a] == id &&
        s.grid.is_float == steps_[a].grid.is_float) {
      s.memory = steps_[a].memory;
      blocks[s.memory].until = last[id];
      continue;
    }
    s.memory = blocks.size();
    blocks.push_back({s.external ? 0 : round_up(s.grid.bytes()), id, last[id], 0});
    s.by_rows = node.op == Op::kLinear && node.layer->by_rows(step(node.a).grid.n);
    if (s.by_rows || (node.op != Op::kConv && node.op != Op::kLinear)) continue;
    if (const int64_t scratch = add_conv(id, s.grid.h).scratch_bytes()) {
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
  for (const Block& block : blocks) memories_.push_back(block.at);
}

// All memories for the whole run, since all are in use at once. False where bands cannot be had or
// are not needed.
bool Plan::place_bands() {
  std::vector<BandValue> values;
  std::vector<size_t> readers(nodes_.size(), 0);
  size_t memories = 0;
  for (const Node& node : nodes_)
    for (const int input : inputs_of(node)) ++readers[static_cast<size_t>(input)];
  std::map<std::pair<int64_t, int64_t>, int64_t> margins;
  for (const Node& node : nodes_)
    if (node.op == Op::kConv) {
      const Grid& in = step(node.a).grid;
      int64_t& margin = margins[{in.h, in.w}];
      margin = std::max(margin, node.window.pad_h);
    }
  int64_t largest = 0, widest = 0;
  const int64_t out_h = step(output_).grid.h;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    BandValue v{step(static_cast<int>(id)).grid, memories, !steps_[id].external};
    const int64_t row = v.grid.cells * v.grid.pitch * 4;
    largest = std::max(largest, row * v.grid.h);
    widest = std::max(widest, divide_up(row * v.grid.h, out_h));
    if (v.stored) v.grid.margin = margins[{v.grid.h, v.grid.w}];
    const size_t a = static_cast<size_t>(node.a);
    if (v.stored && works_in_place(node) && readers[a] == 1 &&
        v.grid.is_float == values[a].grid.is_float)
      v.memory = values[a].memory;
    else
      ++memories;
    values.push_back(v);
  }
  const int64_t in_h = step(0).grid.h, factor = std::max<int64_t>(1, divide_up(out_h, in_h));
  const int64_t band = std::max<int64_t>(1, kBandBytes / (widest * factor)) * factor;
  if (largest <= kLargestWhole || band >= out_h || !has_bands(nodes_, values)) return false;
  band_ = band;
  Bands bands = make_bands(nodes_, values, memories, output_, band);
  memories_.assign(memories, 0);
  std::vector<int64_t> bytes(memories, 0);
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const BandValue& v = values[id];
    Step& s = steps_[id];
    s.memory = v.memory;
    s.grid = v.grid;
    if (v.stored) s.grid.keep(bands.rows[v.memory], v.grid.margin);
    bytes[v.memory] = v.stored ? round_up(s.grid.bytes()) : 0;
  }
  for (size_t m = 0; m < memories; ++m) {
    memories_[m] = arena_bytes_;
    arena_bytes_ += bytes[m];
  }
  int64_t scratch = 0;
  for (const Task& task : bands.tasks) {
    const size_t id = static_cast<size_t>(task.id);
    if (nodes_[id].op == Op::kConv)
      scratch = std::max(scratch, add_conv(id, task.rows.end - task.rows.begin).scratch_bytes());
  }
  for (Step& s : steps_) s.scratch = memories;
  memories_.push_back(arena_bytes_);
  arena_bytes_ += round_up(scratch);
  tasks_ = std::move(bands.tasks);
  return true;
}

uint8_t* Plan::data(const Frame& f, int id) const {
  const Step& s = step(id);
  if (s.external) return reinterpret_cast<uint8_t*>(f.y);
  // Not within the memory where rows have been let go; no row of those is touched.
  const int64_t gone = f.first.empty() ? 0 : f.first[s.memory] * s.grid.pitch * 4;
  return f.arena + (memories_[s.memory] - gone);
}

void Plan::move_down(const Task& task, Frame& f) const {
  const Step& s = step(task.id);
  const Grid& g = s.grid;
  uint8_t* const memory = f.arena + memories_[s.memory];
  parallel_for(g.cells, g.cells * task.keep * g.pitch / 16, [&](int64_t c, int) {
    uint8_t* const plane = memory + c * g.plane * 4;
    std::memmove(plane, plane + task.drop * g.pitch * 4,
                 static_cast<size_t>(task.keep * g.pitch + g.halo) * 4);
  });
  f.first[s.memory] += task.drop;
}

void Plan::run(const float* x, float* y, Buffer& arena, std::vector<NodeProfile>* profile) const {
  const Step& last = step(output_);
  Buffer unwanted(!y && last.external ? last.grid.cells * last.grid.plane * 4 : 0);
  Frame f{x, y ? y : reinterpret_cast<float*>(unwanted.data()), arena.data(), {}};
  if (band_) f.first.assign(memories_.size(), 0);
  if (profile)
    for (size_t id = 0; id < nodes_.size(); ++id)
      profile->push_back({op_name(nodes_[id].op), 0.0, macs(static_cast<int>(id)),
                          nodes_[id].layer ? nodes_[id].layer->density : 1.0});
  for (const Task& task : tasks_) {
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
      grid_to_nchw(last.grid, task.rows, data(f, output_), y);
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
