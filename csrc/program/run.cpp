// SPDX-License-Identifier: Apache-2.0
// Execution of a plan: its tasks in order, and what an operator sees of a run.
#include <chrono>
#include <cstring>

#include "base/threads.h"
#include "program/memory_plan.h"

namespace tops {

size_t PlannedNode::inputs() const { return plan_.node(id_).inputs.size(); }

const ActivationTensor& PlannedNode::in(size_t i) const {
  return plan_.grid(plan_.node(id_).inputs[i]);
}

const ActivationTensor& PlannedNode::out() const { return plan_.grid(id_); }

const ValueType& PlannedNode::in_type(size_t i) const {
  return plan_.node(plan_.node(id_).inputs[i]).type();
}

Operand PlannedNode::operand(size_t i) const {
  const ValueType& t = in_type(i);
  return {true, t.is_float, t.scale, t.zero_point, in(i).channel_stride};
}

bool PlannedNode::streaming() const { return plan_.band() > 0; }

Pairs PlannedNode::row_pairs() const { return plan_.pairs_[static_cast<size_t>(id_)]; }

NodeRun::NodeRun(const MemoryPlan& plan, const RunContext& context, int id, Rows rows_to_make)
    : PlannedNode(plan, id), rows(rows_to_make), context_(context), y_(plan.data(context, id)) {}

uint8_t* NodeRun::x(size_t i) const {
  const int id = plan_.node(id_).inputs[i];
  return id == 0 && plan_.node_plan(0).external ? nullptr : plan_.data(context_, id);
}

const float* NodeRun::callers_array() const { return context_.x; }

bool NodeRun::in_its_place(size_t i) const {
  return plan_.aliases_[static_cast<size_t>(plan_.node(id_).inputs[i])].concat == id_;
}

const Prepared* NodeRun::prepared() const { return plan_.prepared(id_, rows); }

uint8_t* NodeRun::scratch() const {
  return context_.arena + plan_.memories_[plan_.node_plan(id_).scratch].at;
}

uint8_t* MemoryPlan::data(const RunContext& context, int id) const {
  const NodePlan& s = node_plan(id);
  if (s.external) return reinterpret_cast<uint8_t*>(context.y);
  // Not within the memory where rows have been let go; no row of those is touched.
  const int64_t gone = context.first.empty() ? 0 : context.first[s.memory] * s.grid.pitch;
  const int64_t before = aliases_[static_cast<size_t>(id)].offset * s.grid.channel_stride;
  return context.arena + (memories_[s.memory].at + (before - gone) * 4);
}

// Moves the rows that a memory keeps to its beginning.
void MemoryPlan::move_down(const RowTask& task, RunContext& context) const {
  const NodePlan& s = node_plan(task.id);
  const ActivationTensor& g = s.grid;
  const Memory& place = memories_[s.memory];
  uint8_t* const memory = context.arena + place.at;
  parallel_for(place.packets, place.packets * task.keep * g.pitch / 16, [&](int64_t c, int) {
    uint8_t* const channel = memory + c * g.channel_stride * 4;
    std::memmove(channel, channel + task.drop * g.pitch * 4,
                 static_cast<size_t>(task.keep * g.pitch + g.halo) * 4);
  });
  context.first[s.memory] += task.drop;
}

void MemoryPlan::run_task(const RowTask& task, RunContext& context) const {
  if (task.drop) move_down(task, context);
  if (task.id == 0 && node_plan(0).external) return;
  node(task.id).op->run(NodeRun(*this, context, task.id, task.rows));
  if (context.totals && !grid(task.id).is_float) add_totals(task, context);
  if (task.id != output_ || !context.y || node_plan(output_).external) return;
  const ActivationTensor& out = grid(output_);
  if (node(output_).type().rank == 3)
    tensor_to_nhwc(out, data(context, output_), context.y);
  else
    tensor_to_nchw(out, task.rows, data(context, output_), context.y);
}

void MemoryPlan::run(const float* x, float* y, Buffer& arena, std::vector<NodeProfile>* profile,
                     const ChannelTotals* totals) const {
  const NodePlan& last = node_plan(output_);
  Buffer unwanted(!y && last.external ? last.grid.packets * last.grid.channel_stride * 4 : 0);
  RunContext context{x, y, arena.data(), totals, {}};
  if (!y && last.external) context.y = reinterpret_cast<float*>(unwanted.data());
  if (band_) context.first.assign(memories_.size(), 0);
  if (!profile) {
    for (const RowTask& task : tasks_) run_task(task, context);
    return;
  }
  for (size_t id = 0; id < nodes_.size(); ++id) {
    const ActivationTensor& g = node_plans_[id].grid;
    const OpKernel& op = *nodes_[id].op;
    profile->push_back({nodes_[id].name, 0.0, op.macs({g.n, g.channels, g.h, g.w}), op.density()});
  }
  for (const RowTask& task : tasks_) {
    const auto begin = std::chrono::steady_clock::now();
    run_task(task, context);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    (*profile)[static_cast<size_t>(task.id)].ms += took.count();
  }
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
