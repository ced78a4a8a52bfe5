// SPDX-License-Identifier: Apache-2.0
// Operator rearrange: each axis behind the batch is split into factors, which form the axes of the
// value in another order.
#include "ops/rearrange.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "program/registry.h"
#include "tensor/for_each_row.h"
#include "tensor/strided_copy.h"

namespace tops {
namespace {

constexpr int64_t kRest = -1;
using Sizes = std::array<int64_t, 3>;

// Of the axes of a value of that rank: tokens are images of one row.
std::vector<size_t> axes_of(int rank) {
  if (rank == 2) return {kChannels};
  if (rank == 3) return {kChannels, kColumns};
  return {kChannels, kRows, kColumns};
}

// Distance in packets of neighbors along each axis.
Sizes strides(const ActivationTensor& g) { return {g.channel_stride, g.pitch, 1}; }

// u8: do four channels of one packet stay together? Then factors become those of packets.
bool whole_packets(Factors& factors) {
  Factor* lowest = nullptr;
  size_t others = 0;
  for (Factor& f : factors) {
    const bool read = f.from_axis == kChannels, made = f.to_axis == kChannels;
    if (read && made && f.from == 1 && f.to == 1)
      lowest = &f;
    else
      others += read || made;
  }
  if (!lowest) return !others;  // one channel
  if (others && lowest->size % 4) return false;
  lowest->size = divide_up(lowest->size, 4);
  for (Factor& f : factors) {
    if (&f == lowest) continue;
    if (f.from_axis == kChannels) f.from /= 4;
    if (f.to_axis == kChannels) f.to /= 4;
  }
  return true;
}

class Rearrange : public OpKernel {
 public:
  Rearrange(const Attributes& at, const Types& in)
      : split_(at.integer_lists("split", kRest)),
        order_(at.integers("order", 0)),
        axes_(at.integers("axes", 0)) {
    type_ = in[0];
    type_.rank = static_cast<int>(at.integer("rank", 2, 4));
    check_axes(at, in[0]);
    check_channels(at, in[0]);
    find_streaming();
  }

  Shape infer(const Shapes& inputs) const override {
    const Shape& x = inputs[0];
    const std::vector<int64_t> sizes = sizes_of({x.channels, x.h, x.w});
    Sizes made{1, 1, 1};
    const std::vector<size_t> to = to_axes();
    for (size_t i = 0; i < order_.size(); ++i)
      made[to[i]] = checked_mul(made[to[i]], sizes[static_cast<size_t>(order_[i])]);
    return {x.n, made[kChannels], made[kRows], made[kColumns]};
  }

  bool streams(const Shapes&) const override { return made_rows_ > 0; }

  Rows rows_read(size_t, Rows rows, int64_t, int64_t) const override {
    const auto group = [&](int64_t row) {
      return row >= 0 ? row / made_rows_ : -divide_up(-row, made_rows_);
    };
    return {group(rows.begin) * read_rows_, (group(rows.end - 1) + 1) * read_rows_};
  }

  double smooth_end(size_t, double end, int64_t, int64_t) const override {
    const auto made = static_cast<double>(made_rows_);
    return (end + made - 1) / made * static_cast<double>(read_rows_);
  }

  void run(const NodeRun& node) const override {
    const ActivationTensor& in = node.in(0);
    Factors factors = factors_of(sizes_of({in.channels, in.h, in.w}));
    if (type_.is_float || whole_packets(factors))
      move_packets(node, factors);
    else
      move_codes(node, factors);
    fill_all_halos(node.out(), node.rows, node.y(), halo_value(type_));
  }

 private:
  void check_axes(const Attributes& at, const ValueType& x) const;
  void check_channels(const Attributes& at, const ValueType& x);
  void find_streaming();
  std::vector<size_t> to_axes() const;
  std::vector<int64_t> sizes_of(const Sizes& x) const;
  Factors factors_of(const std::vector<int64_t>& sizes) const;
  void move_packets(const NodeRun& node, const Factors& factors) const;

  std::vector<std::vector<int64_t>> split_;
  std::vector<int64_t> order_, axes_;
  int rank_of_x_ = 4;
  // So many rows of the value are made of so many rows of the input, group by group; 0: rows of the
  // value read any.
  int64_t made_rows_ = 0, read_rows_ = 0;
};

// Factors, order and axes that fit each other and the ranks.
void Rearrange::check_axes(const Attributes& at, const ValueType& x) const {
  const auto axes = static_cast<size_t>(type_.rank) - 1;
  if (split_.size() != static_cast<size_t>(x.rank) - 1 || axes_.size() != axes)
    bad_node(at.op(), "factors of each axis of the input, and axes of the value",
             std::to_string(split_.size()) + " and " + std::to_string(axes_.size()));
  size_t count = 0;
  for (const std::vector<int64_t>& factors : split_) {
    count += factors.size();
    if (std::count(factors.begin(), factors.end(), 0) ||
        std::count(factors.begin(), factors.end(), kRest) > 1)
      bad_node(at.op(), "factors of at least 1, one rest at most", "others");
  }
  std::vector<int64_t> sorted = order_;
  std::sort(sorted.begin(), sorted.end());
  bool fits = sorted.size() == count;
  for (size_t i = 0; fits && i < count; ++i) fits = sorted[i] == static_cast<int64_t>(i);
  int64_t together = 0;
  for (const int64_t some : axes_) together += std::min<int64_t>(some, 1 << 20);
  if (!fits || together != static_cast<int64_t>(count))
    bad_node(at.op(), "an order of " + std::to_string(count) + " factors and axes of as many",
             std::to_string(order_.size()) + " and " + std::to_string(together));
}

// Those of the value, where they do not depend on the size of the input.
void Rearrange::check_channels(const Attributes& at, const ValueType& x) {
  rank_of_x_ = x.rank;
  std::vector<int64_t>& factors = split_[0];
  const auto rest = std::find(factors.begin(), factors.end(), kRest);
  int64_t product = 1;
  for (const int64_t f : factors) product = f == kRest ? product : checked_mul(product, f);
  if (x.channels > 0) {
    const bool fits = rest == factors.end() ? product == x.channels : x.channels % product == 0;
    if (!fits)
      bad_node(at.op(), "factors of " + std::to_string(x.channels) + " channels",
               std::to_string(product));
    if (rest != factors.end()) *rest = x.channels / product;
  }
  std::vector<int64_t> all;
  for (const std::vector<int64_t>& axis : split_) all.insert(all.end(), axis.begin(), axis.end());
  type_.channels = 1;
  for (int64_t i = 0; i < axes_[0]; ++i) {
    const int64_t f = all[static_cast<size_t>(order_[static_cast<size_t>(i)])];
    type_.channels = f == kRest ? 0 : checked_mul(type_.channels, f);
    if (f == kRest) break;
  }
  if (type_.channels == 0 && type_.rank != 2)
    bad_node(at.op(), "a known number of channels", "one of the size");
}

// Rows go with rows where the outermost factor of theirs stays outermost, and the value's others
// are known.
void Rearrange::find_streaming() {
  if (rank_of_x_ != 4 || type_.rank != 4 || split_[kRows].empty() || axes_[kRows] == 0) return;
  std::vector<int64_t> all;
  for (const std::vector<int64_t>& axis : split_) all.insert(all.end(), axis.begin(), axis.end());
  const size_t outermost = split_[kChannels].size();
  const auto first = static_cast<size_t>(axes_[kChannels]);
  if (static_cast<size_t>(order_[first]) != outermost) return;
  int64_t made = 1, read = 1;
  for (size_t i = 1; i < static_cast<size_t>(axes_[kRows]); ++i) {
    const int64_t f = all[static_cast<size_t>(order_[first + i])];
    if (f == kRest) return;
    made = checked_mul(made, f);
  }
  for (size_t i = 1; i < split_[kRows].size(); ++i) {
    if (split_[kRows][i] == kRest) return;
    read = checked_mul(read, split_[kRows][i]);
  }
  made_rows_ = made;
  read_rows_ = read;
}

// The axis of the value that each factor, in the new order, is a part of.
std::vector<size_t> Rearrange::to_axes() const {
  std::vector<size_t> made;
  const std::vector<size_t> axes = axes_of(type_.rank);
  for (size_t a = 0; a < axes.size(); ++a)
    made.insert(made.end(), static_cast<size_t>(axes_[a]), axes[a]);
  return made;
}

// Of all factors in a row, for an input of this size.
std::vector<int64_t> Rearrange::sizes_of(const Sizes& x) const {
  std::vector<int64_t> sizes;
  const std::vector<size_t> axes = axes_of(rank_of_x_);
  for (size_t a = 0; a < axes.size(); ++a) {
    int64_t product = 1;
    bool free = false;
    for (const int64_t f : split_[a]) {
      free = free || f == kRest;
      product = f == kRest ? product : checked_mul(product, f);
    }
    const int64_t size = x[axes[a]];
    if (free ? size % product : size != product)
      bad_size("an axis of " + std::to_string(product) + (free ? " or a multiple" : ""),
               std::to_string(size), "Use the size it was made for.");
    for (const int64_t f : split_[a]) sizes.push_back(f == kRest ? size / product : f);
  }
  return sizes;
}

Factors Rearrange::factors_of(const std::vector<int64_t>& sizes) const {
  Factors all(sizes.size());
  const std::vector<size_t> axes = axes_of(rank_of_x_), to = to_axes();
  size_t i = 0;
  for (size_t a = 0; a < axes.size(); ++a)
    for (size_t k = 0; k < split_[a].size(); ++k, ++i) {
      all[i] = {sizes[i], axes[a], 0, 1, 1};
      for (size_t inner = 1; inner < split_[a].size() - k; ++inner) all[i].from *= sizes[i + inner];
    }
  Sizes next{1, 1, 1};
  for (size_t k = order_.size(); k-- > 0;) {
    Factor& f = all[static_cast<size_t>(order_[k])];
    f.to_axis = to[k];
    f.to = next[to[k]];
    next[to[k]] *= f.size;
  }
  all.erase(std::remove_if(all.begin(), all.end(), [](const Factor& f) { return f.size == 1; }),
            all.end());
  return all;
}

// All at once, or row by row where only some rows are wanted.
void Rearrange::move_packets(const NodeRun& node, const Factors& factors) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const Sizes from = strides(in), to = strides(out);
  const Rows rows = node.rows;
  const bool all = rows.begin == 0 && rows.end == out.h;
  std::vector<CopyAxis> axes{{out.n, in.image, out.image}};
  for (const Factor& f : factors)
    if (all || f.to_axis != kRows)
      axes.push_back({f.size, f.from * from[f.from_axis], f.to * to[f.to_axis]});
  for (int64_t row = rows.begin; row < (all ? 1 : rows.end); ++row) {
    int64_t packet = in.packet(0, 0, 0);
    for (const Factor& f : factors)
      if (f.to_axis == kRows) packet += row / f.to % f.size * f.from * from[f.from_axis];
    copy_strided(node.x(0) + packet * 4, node.y() + out.packet(0, row, 0) * 4, axes);
  }
}

const RegisterOp<Rearrange> kRearrange("rearrange", 1);

}  // namespace
}  // namespace tops
