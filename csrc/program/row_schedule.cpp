// SPDX-License-Identifier: Apache-2.0
#include "program/row_schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tops {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();
// Limit of the padding above an image: every value of its size would hold as much.
constexpr int64_t kMostMargin = 64;
// Memories of many rows get 1/8 spare rows to amortize moving what stays.
constexpr int64_t kManyRows = 32, kSpareShare = 8;

// Per value: the rows that its readers still need, and the rows made so far.
class RowDemand {
 public:
  RowDemand(const std::vector<Node>& nodes, const std::vector<StreamedValue>& values,
            size_t memories, int output)
      : nodes_(nodes),
        values_(values),
        output_(static_cast<size_t>(output)),
        need_(nodes.size(), kNone),
        done_(nodes.size(), 0),
        low_(memories, 0) {}

  bool finished() const { return done_[output_] >= values_[output_].grid.h; }
  int64_t low(size_t memory) const { return low_[memory]; }
  // Rows of a memory made so far, padding included.
  int64_t top(size_t id) const { return padded_end(id, done_[id]); }

  // Computes the rows of each value needed for output rows [0, end); returns true if no value needs
  // a row.
  bool ask(int64_t end) {
    need_[output_] = std::max(need_[output_], static_cast<double>(end));
    bool nothing = true;
    for (size_t id = nodes_.size(); id-- > 0;) {
      if (need_[id] == kNone) continue;
      if (const Pairs p = values_[id].pairs; p != Pairs::kNone) {
        const double alone = p == Pairs::kOdd ? 1 : 0;
        need_[id] = 2 * std::ceil((need_[id] - alone) / 2) + alone;
      }
      const int64_t rows_end = static_cast<int64_t>(std::floor(need_[id]));
      nothing = nothing && rows_end <= 0;
      each_input(id, [&](size_t input, size_t i) {
        const OpKernel& op = *nodes_[id].op;
        const int64_t in = values_[input].grid.h, out = values_[id].grid.h;
        const Rows last = op.rows_read(i, {rows_end - 1, rows_end}, in, out);
        double wanted =
            std::max(op.smooth_end(i, need_[id], in, out), static_cast<double>(last.end));
        // A row of padding alone comes with the first row.
        if (rows_end > 0) wanted = std::max(wanted, 1.0);
        need_[input] = std::max(need_[input], wanted);
      });
    }
    return nothing;
  }

  // Clears the demand.
  void reset() { std::fill(need_.begin(), need_.end(), kNone); }

  // The rows that are to be made now, and are from then on.
  Rows advance(size_t id) {
    const double last = static_cast<double>(values_[id].grid.h);
    const int64_t end = static_cast<int64_t>(std::floor(std::clamp(need_[id], 0.0, last)));
    const Rows rows{done_[id], std::max(done_[id], end)};
    done_[id] = rows.end;
    return rows;
  }

  // Between two bands: rows that nothing will read again are let go.
  void release() {
    for (size_t m = 0; m < low_.size(); ++m) low_[m] = std::numeric_limits<int64_t>::max();
    for (size_t id = 0; id < nodes_.size(); ++id) {
      int64_t& own = low_[values_[id].memory];
      own = std::min(own, top(id));
      const ActivationTensor& out = values_[id].grid;
      if (done_[id] >= out.h) continue;
      each_input(id, [&](size_t input, size_t i) {
        const StreamedValue& v = values_[input];
        const Rows next{done_[id], done_[id] + 1};
        const int64_t first =
            nodes_[id].op->rows_read(i, next, v.grid.h, out.h).begin + v.grid.margin;
        int64_t& low = low_[v.memory];
        low = std::min(low, std::max<int64_t>(first, 0));
      });
    }
  }

 private:
  int64_t padded_end(size_t id, int64_t end) const {
    const ActivationTensor& g = values_[id].grid;
    if (end <= 0) return 0;
    return end + (end < g.h ? 1 : 2) * g.margin;
  }

  // Calls body(input, its index) for every input of which a node reads rows.
  template <class Body>
  void each_input(size_t id, const Body& body) const {
    const Node& node = nodes_[id];
    for (size_t i = 0; i < node.inputs.size(); ++i)
      if (node.op->reads(i)) body(static_cast<size_t>(node.inputs[i]), i);
  }

  const std::vector<Node>& nodes_;
  const std::vector<StreamedValue>& values_;
  size_t output_;
  // End of the rows needed of each value. Fractional: a row of a small map needs many rows of a
  // large one, which would otherwise all be made at once.
  std::vector<double> need_;
  std::vector<int64_t> done_, low_;
};

// All tasks of a run whose memories hold `room` rows; rows: null, or receives the most rows that
// each memory held.
std::vector<RowTask> pass(RowDemand demand, const std::vector<StreamedValue>& values, int64_t band,
                          const std::vector<int64_t>& room, std::vector<int64_t>* rows) {
  int64_t end = band;
  // The first rows of the first layers come bands before those of the output.
  while (!demand.ask(end)) {
    end -= band;
    demand.reset();
  }
  std::vector<RowTask> tasks;
  std::vector<int64_t> first(room.size(), 0), tops(room.size(), 0);
  for (; !demand.finished(); end += band) {
    demand.ask(end);
    for (size_t id = 0; id < values.size(); ++id) {
      const size_t m = values[id].memory;
      const int64_t had = tops[m];  // of all values that lie in it
      RowTask task{static_cast<int>(id), demand.advance(id), 0, 0};
      if (task.rows.begin == task.rows.end) continue;
      if (values[id].stored) {
        const int64_t top = tops[m] = std::max(had, demand.top(id));
        if (rows) (*rows)[m] = std::max((*rows)[m], top - demand.low(m));
        if (top - first[m] > room[m]) {
          task.drop = demand.low(m) - first[m];
          task.keep = had - demand.low(m);
          first[m] = demand.low(m);
        }
      }
      tasks.push_back(task);
    }
    demand.release();
  }
  return tasks;
}

}  // namespace

bool can_stream(const std::vector<Node>& nodes, const std::vector<StreamedValue>& values) {
  for (size_t id = 0; id < nodes.size(); ++id) {
    const Node& node = nodes[id];
    const ActivationTensor& g = values[id].grid;
    if (node.type().rank != 4 || g.n != 1 || g.margin > kMostMargin) return false;
    Shapes inputs;
    for (const int i : node.inputs) {
      const ActivationTensor& in = values[static_cast<size_t>(i)].grid;
      inputs.push_back({in.n, in.channels, in.h, in.w});
    }
    if (!node.op->streams(inputs)) return false;
  }
  return true;
}

RowSchedule schedule_rows(const std::vector<Node>& nodes, const std::vector<StreamedValue>& values,
                          size_t memories, int output, int64_t band) {
  const RowDemand demand(nodes, values, memories, output);
  RowSchedule schedule;
  schedule.rows.assign(memories, 0);
  // Few rows get not one more than is needed: moving what stays costs less than a larger part of
  // the cache. Many would be moved for every band.
  const std::vector<int64_t> endless(memories, std::numeric_limits<int64_t>::max());
  pass(demand, values, band, endless, &schedule.rows);
  for (int64_t& rows : schedule.rows)
    if (rows >= kManyRows) rows += rows / kSpareShare;
  schedule.tasks = pass(demand, values, band, schedule.rows, nullptr);
  return schedule;
}

}  // namespace tops
