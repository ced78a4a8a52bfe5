// SPDX-License-Identifier: Apache-2.0
// Shapes, padding and memory of a program at one input size.
#include "program/memory_plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>

#include "base/error.h"

namespace tops {
namespace {

// A larger padding is rare, and a halo of its size would cost every layer at that resolution; such
// layers copy instead.
constexpr int64_t kMostHalo = 8;

// Memory that is needed from one node to another.
struct Block {
  int64_t bytes;
  size_t born, until;
  int64_t at;
};

// First fit: gives each block, in this order, the lowest offset that is free over its lifetime;
// returns the bytes of all.
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

// First fit by time and by size: which of the two leaves fewer holes depends on the network.
int64_t place_blocks(std::vector<Block>& blocks) {
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<Block> by_size = blocks;
  const int64_t bytes = first_fit(blocks, order);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  const int64_t other = first_fit(by_size, order);
  if (other >= bytes) return bytes;
  blocks = by_size;
  return other;
}

}  // namespace

MemoryPlan::MemoryPlan(const std::vector<Node>& nodes, int output, const Shape& input,
                       bool keep_all, const PlanDebug& debug)
    : nodes_(nodes), output_(output), poison_(debug.poison) {
  node_plans_.resize(nodes.size());
  aliases_.resize(nodes.size());
  choose_row_pairs();
  infer_shapes(input);
  choose_halos();
  node_plans_[0].external = !keep_all && can_stay_with_caller(0);
  NodePlan& last = node_plans_[static_cast<size_t>(output)];
  last.external = !keep_all && can_stay_with_caller(output);
  if (last.external) last.grid.close_up();
  if (!keep_all) find_concat_aliases();
  if (keep_all || !place_streaming(debug.band)) place_whole(keep_all);
}

// Can the input be read, or the output be made, in the caller's own array?
bool MemoryPlan::can_stay_with_caller(int id) const {
  if (output_ == 0) return false;
  const ActivationTensor& g = grid(id);
  if (id == output_ &&
      (!g.is_float || g.n != 1 || g.h * g.w <= 1 || g.halo || node(id).type().rank != 4))
    return false;
  for (const Node& reader : nodes_)
    for (const int input : reader.inputs)
      if (input == id && (id == output_ || !reader.op->reads_callers_array())) return false;
  return true;
}

// Pairs of rows (ops/winograd.h) of one layer end where those of the next one stop reading, so that
// none makes a row before it is needed.
void MemoryPlan::choose_row_pairs() {
  std::vector<bool> odd;
  for (const Node& node : nodes_) {
    const bool odd_input = !node.inputs.empty() && odd[static_cast<size_t>(node.inputs[0])];
    const RowPairing pairing = node.op->row_pairing(odd_input);
    odd.push_back(pairing.odd);
    pairs_.push_back(pairing.pairs);
  }
}

// A part of a concatenation can be made where it is wanted, if it is nothing else's part, is padded
// alike, and its packets are the whole's.
void MemoryPlan::find_concat_aliases() {
  std::map<int, int> parts;  // of how many concatenations
  for (const Node& node : nodes_)
    if (node.op->concatenates())
      for (const int part : node.inputs) ++parts[part];
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const ValueType& whole = nodes_[id].type();
    if (!nodes_[id].op->concatenates() || whole.rank == 2 || node_plans_[id].external) continue;
    int64_t offset = 0;
    for (const int part : nodes_[id].inputs) {
      const ActivationTensor& g = grid(part);
      ConcatAlias& alias = aliases_[static_cast<size_t>(part)];
      const ValueType& made = node(part).type();
      const bool alike = whole.is_float || (made.scale == whole.scale &&
                                            made.zero_point == whole.zero_point && offset % 4 == 0);
      if (alike && parts[part] == 1 && part != 0 && part != output_ && !alias.holds &&
          g.halo == node_plans_[id].grid.halo) {
        alias.concat = static_cast<int>(id);
        alias.offset = whole.is_float ? offset : offset / 4;
        aliases_[id].holds = true;
      }
      offset += g.channels;
    }
  }
}

// May a value take the place of its first operand, if nothing else reads that?
bool MemoryPlan::may_replace(size_t id) const {
  const NodePlan& s = node_plans_[id];
  if (!nodes_[id].op->in_place() || s.external || aliases_[id].concat >= 0) return false;
  const int first = nodes_[id].inputs[0];
  const ConcatAlias& alias = aliases_[static_cast<size_t>(first)];
  const ActivationTensor& g = grid(first);
  const bool alike = g.is_float == s.grid.is_float && g.channels == s.grid.channels &&
                     g.h == s.grid.h && g.w == s.grid.w;
  return alike && alias.concat < 0 && !alias.holds && !node_plan(first).external;
}

void MemoryPlan::infer_shapes(const Shape& input) {
  Shapes shapes;
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const Node& node = nodes_[id];
    Shapes inputs;
    for (const int i : node.inputs) inputs.push_back(shapes[static_cast<size_t>(i)]);
    if (inputs.empty()) inputs.push_back(input);
    try {
      const Shape made = node.op->infer(inputs);
      if (made.h < 1 || made.w < 1) bad_size("a pixel at least", "none", "Use a larger image.");
      node_plans_[id].grid =
          ActivationTensor::make(made.channels, node.type().is_float, made.n, made.h, made.w, 0);
      shapes.push_back(made);
    } catch (const Error& e) {
      throw Error(e.kind, "node " + std::to_string(id) + " (" + node.name + "): " + e.what());
    }
  }
}

// All images of one size share one halo, so that a layer's output and its residual have the same
// layout as its input and whole vectors can be stored.
void MemoryPlan::choose_halos() {
  std::map<std::pair<int64_t, int64_t>, int64_t> halos;
  for (const Node& node : nodes_) {
    const int64_t wanted = node.op->halo();
    if (!wanted || wanted > kMostHalo) continue;
    const ActivationTensor& in = grid(node.inputs[0]);
    int64_t& halo = halos[{in.h, in.w}];
    halo = std::max(halo, wanted);
  }
  for (size_t id = 0; id < nodes_.size(); ++id) {
    ActivationTensor& g = node_plans_[id].grid;
    const auto it = halos.find({g.h, g.w});
    g = ActivationTensor::make(g.channels, g.is_float, g.n, g.h, g.w,
                               nodes_[id].type().rank != 4 || it == halos.end() ? 0 : it->second);
  }
}

// Strips of one height share their Prepared, except the top one of pairs that begin at odd rows.
int64_t MemoryPlan::strip_key(int id, Rows rows) const {
  const bool top = rows.begin == 0 && pairs_[static_cast<size_t>(id)] == Pairs::kOdd;
  return (rows.end - rows.begin) * 2 + (top ? 1 : 0);
}

const Prepared* MemoryPlan::prepare(int id, Rows rows) {
  if (const Prepared* found = prepared(id, rows)) return found;
  std::unique_ptr<Prepared> made = node(id).op->prepare(PlannedNode(*this, id), rows);
  if (!made) return nullptr;
  std::unique_ptr<Prepared>& place =
      node_plans_[static_cast<size_t>(id)].prepared[strip_key(id, rows)];
  place = std::move(made);
  return place.get();
}

const Prepared* MemoryPlan::prepared(int id, Rows rows) const {
  const auto& made = node_plan(id).prepared;
  const auto found = made.find(strip_key(id, rows));
  return found == made.end() ? nullptr : found->second.get();
}

// A value's memory is free again after its last reader.
void MemoryPlan::place_whole(bool keep_all) {
  std::vector<size_t> last(nodes_.size());
  for (size_t id = 0; id < nodes_.size(); ++id) {
    last[id] = keep_all || static_cast<int>(id) == output_ ? nodes_.size() : id;
    for (const int input : nodes_[id].inputs)
      last[static_cast<size_t>(input)] = std::max(last[static_cast<size_t>(input)], id);
  }
  std::vector<Block> blocks;
  std::map<size_t, size_t> shared;  // block of each concatenation that others lie in
  for (size_t id = 0; id < nodes_.size(); ++id) {
    NodePlan& s = node_plans_[id];
    const Rows all{0, s.grid.h};
    tasks_.push_back({static_cast<int>(id), all, 0, 0});
    if (may_replace(id)) {
      const auto first = static_cast<size_t>(nodes_[id].inputs[0]);
      if (last[first] == id) {
        s.memory = node_plans_[first].memory;
        blocks[s.memory].until = last[id];
        continue;
      }
    }
    const int concat = aliases_[id].concat;
    const size_t owner = concat < 0 ? id : static_cast<size_t>(concat);
    const auto made = shared.find(owner);
    s.memory = made == shared.end() ? blocks.size() : made->second;
    if (made == shared.end()) {
      const int64_t bytes = round_up(node_plans_[owner].grid.bytes());
      blocks.push_back({s.external ? 0 : bytes, id, last[id], 0});
      if (concat >= 0) shared[owner] = s.memory;
    }
    blocks[s.memory].until = std::max(blocks[s.memory].until, last[id]);
    const Prepared* const prepared = prepare(static_cast<int>(id), all);
    if (const int64_t scratch = prepared ? prepared->scratch_bytes() : 0) {
      s.scratch = blocks.size();
      blocks.push_back({round_up(scratch), id, id, 0});
    }
  }
  arena_bytes_ = place_blocks(blocks);
  for (const Block& block : blocks) memories_.push_back({block.at, 0, 0});
}

}  // namespace tops
