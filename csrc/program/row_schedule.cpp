// SPDX-License-Identifier: Apache-2.0
#include "program/row_schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/interpolation.h"

namespace tops {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();
// More padding than this above an image would be kept for every value of its size.
constexpr int64_t kMostMargin = 64;
// A memory of so many rows gets one more for every so many.
constexpr int64_t kManyRows = 32, kSpareShare = 8;

int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -divide_up(-a, b); }

// Input rows of a resize for each of its output rows. Never 0, as the ratio is where one row is
// stretched with aligned corners: rows far above the output would still ask for the input's first.
double steepness(const Detail& d, const ActivationTensor& in, const ActivationTensor& out) {
  const double ratio = static_cast<double>(sampling_ratio(in.h, out.h, d.align, d.zoom_h));
  return std::max(ratio, 1.0 / static_cast<double>(out.h));
}

Rows rows_resized(const Node& node, const ActivationTensor& in, const ActivationTensor& out,
                  Rows rows) {
  const Detail& d = *node.detail;
  const float ratio = sampling_ratio(in.h, out.h, d.align, d.zoom_h);
  const auto row = [&](int64_t y) {
    if (y < 0) {  // as far above the image as it is in the output
      const int64_t above =
          1 + static_cast<int64_t>(static_cast<double>(-y) * steepness(d, in, out));
      return Rows{-above, -above + 1};
    }
    y = std::min(y, out.h - 1);
    if (!d.bilinear) return Rows{nearest(y, in.h, ratio), nearest(y, in.h, ratio) + 1};
    const Sample s = sample(y, in.h, ratio, d.align);
    return Rows{s.first, s.second + 1};
  };
  return {row(rows.begin).begin, row(rows.end - 1).end};
}

// Where the input rows end that `end` rows of the output read, or a little later: a straight line
// over the steps of rows_read.
double smooth_end(const Node& node, const ActivationTensor& in, const ActivationTensor& out,
                  double end) {
  if (node.op == Op::kPixelShuffle) {
    const double f = static_cast<double>(node.detail->factor_h);
    return (end + f - 1) / f;
  }
  if (node.op == Op::kPixelUnshuffle) return end * static_cast<double>(node.detail->factor_h);
  if (node.op == Op::kResize) {
    return end * steepness(*node.detail, in, out) + 2;
  }
  const Rows first = rows_read(node, in, out, {0, 1}), second = rows_read(node, in, out, {1, 2});
  return static_cast<double>(first.end) + (end - 1) * static_cast<double>(second.end - first.end);
}

// What the readers of a memory still need, and what has been made.
class RowSchedule {
 public:
  RowSchedule(const std::vector<Node>& nodes, const std::vector<BandValue>& values, size_t memories,
              int output)
      : nodes_(nodes),
        values_(values),
        output_(static_cast<size_t>(output)),
        need_(nodes.size(), kNone),
        done_(nodes.size(), 0),
        low_(memories, 0) {}

  bool finished() const { return done_[output_] >= values_[output_].grid.h; }
  int64_t low(size_t memory) const { return low_[memory]; }
  // Rows of a memory that are there, padding included.
  int64_t top(size_t id) const { return padded_end(id, done_[id]); }

  // How many rows each value needs for so many of the output; true: for none is it more than 0.
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
      each_input(id, [&](size_t input, bool beside) {
        const ActivationTensor &in = values_[input].grid, &out = values_[id].grid;
        double wanted = need_[id];
        if (!beside)
          wanted = std::max(
              smooth_end(nodes_[id], in, out, need_[id]),
              static_cast<double>(rows_read(nodes_[id], in, out, {rows_end - 1, rows_end}).end));
        // A row of padding alone comes with the first row.
        if (rows_end > 0) wanted = std::max(wanted, 1.0);
        need_[input] = std::max(need_[input], wanted);
      });
    }
    return nothing;
  }

  // Forgets what was asked.
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
      each_input(id, [&](size_t input, bool beside) {
        const BandValue& v = values_[input];
        const Rows next{done_[id], done_[id] + 1};
        const int64_t first =
            (beside ? next : rows_read(nodes_[id], v.grid, out, next)).begin + v.grid.margin;
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

  // beside: a residual or gate, of which a convolution reads the rows that it makes.
  template <class Body>
  void each_input(size_t id, const Body& body) const {
    const Node& node = nodes_[id];
    const std::vector<int> inputs = inputs_of(node);
    for (size_t i = 0; i < inputs.size(); ++i)
      if (node.op != Op::kResize || i == 0)  // of the other only the size matters
        body(static_cast<size_t>(inputs[i]), node.op == Op::kConv && i > 0);
  }

  const std::vector<Node>& nodes_;
  const std::vector<BandValue>& values_;
  size_t output_;
  // How far each value is wanted. Not whole rows: a row of a small map asks for many of a large
  // one, which would all come at once.
  std::vector<double> need_;
  std::vector<int64_t> done_, low_;
};

// All tasks of a run through memories of so many rows; rows: null, or what each memory came to
// hold.
std::vector<RowTask> pass(RowSchedule flow, const std::vector<BandValue>& values, int64_t band,
                          const std::vector<int64_t>& room, std::vector<int64_t>* rows) {
  int64_t end = band;
  // The first rows of the first layers come bands before those of the output.
  while (!flow.ask(end)) {
    end -= band;
    flow.reset();
  }
  std::vector<RowTask> tasks;
  std::vector<int64_t> first(room.size(), 0), tops(room.size(), 0);
  for (; !flow.finished(); end += band) {
    flow.ask(end);
    for (size_t id = 0; id < values.size(); ++id) {
      const size_t m = values[id].memory;
      const int64_t had = tops[m];  // of all values that lie in it
      RowTask task{static_cast<int>(id), flow.advance(id), 0, 0};
      if (task.rows.begin == task.rows.end) continue;
      if (values[id].stored) {
        const int64_t top = tops[m] = std::max(had, flow.top(id));
        if (rows) (*rows)[m] = std::max((*rows)[m], top - flow.low(m));
        if (top - first[m] > room[m]) {
          task.drop = flow.low(m) - first[m];
          task.keep = had - flow.low(m);
          first[m] = flow.low(m);
        }
      }
      tasks.push_back(task);
    }
    flow.release();
  }
  return tasks;
}

}  // namespace

Rows rows_read(const Node& node, const ActivationTensor& in, const ActivationTensor& out,
               Rows rows) {
  const Window& w = node.window;
  const int64_t height = node.op == Op::kConv ? node.layer->shape.r : node.kernel_h;
  switch (node.op) {
    case Op::kConv:
    case Op::kMaxPool:
    case Op::kAvgPool:
      return {rows.begin * w.stride_h - w.pad_h,
              (rows.end - 1) * w.stride_h - w.pad_h + (height - 1) * w.dil_h + 1};
    case Op::kPixelShuffle:
      return {divide_down(rows.begin, node.detail->factor_h),
              divide_down(rows.end - 1, node.detail->factor_h) + 1};
    case Op::kPixelUnshuffle:
      return {rows.begin * node.detail->factor_h, rows.end * node.detail->factor_h};
    case Op::kResize:
      return rows_resized(node, in, out, rows);
    default:
      return rows;
  }
}

bool has_bands(const std::vector<Node>& nodes, const std::vector<BandValue>& values) {
  for (size_t id = 0; id < nodes.size(); ++id) {
    const Node& node = nodes[id];
    const ActivationTensor& g = values[id].grid;
    if (node.rank2 || node.op == Op::kLinear || node.op == Op::kAdaptiveAvgPool || g.n != 1 ||
        g.margin > kMostMargin)
      return false;
    if (node.op == Op::kMul && node.b >= 0 &&
        values[static_cast<size_t>(node.b)].grid.h != g.h)  // one number for the whole image
      return false;
  }
  return true;
}

Bands make_bands(const std::vector<Node>& nodes, const std::vector<BandValue>& values,
                 size_t memories, int output, int64_t band) {
  const RowSchedule flow(nodes, values, memories, output);
  Bands bands;
  bands.rows.assign(memories, 0);
  // Few rows get not one more than is needed: moving what stays costs less than a larger part of
  // the cache. Many would be moved for every band.
  const std::vector<int64_t> endless(memories, std::numeric_limits<int64_t>::max());
  pass(flow, values, band, endless, &bands.rows);
  for (int64_t& rows : bands.rows)
    if (rows >= kManyRows) rows += rows / kSpareShare;
  bands.tasks = pass(flow, values, band, bands.rows, nullptr);
  return bands;
}

}  // namespace tops
