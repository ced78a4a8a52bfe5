// SPDX-License-Identifier: Apache-2.0
// Operator rearrange: each axis behind the batch is split into factors, which form the axes of the
// value in another order.
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
// Axes behind the batch, as every tensor has them.
constexpr size_t kChannels = 0, kRows = 1, kColumns = 2;
using Sizes = std::array<int64_t, 3>;

// Of the axes of a value of that rank: tokens are images of one row.
std::vector<size_t> axes_of(int rank) {
  if (rank == 2) return {kChannels};
  if (rank == 3) return {kChannels, kColumns};
  return {kChannels, kRows, kColumns};
}

// A factor longer than 1: where it stands in the input's axes and in the value's. Neighbors are so
// many places of the axis apart.
struct Factor {
  int64_t size;
  size_t from_axis, to_axis;
  int64_t from, to;
};
using Factors = std::vector<Factor>;

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
  void move_codes(const NodeRun& node, const Factors& factors) const;

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

// For each place of an axis of the value, the channel of the input that it adds, and the packets
// beyond the input's first pixel.
struct Sources {
  std::vector<int64_t> channel, packet;
};

Sources sources(const Factors& factors, size_t axis, int64_t size, int64_t pitch) {
  Sources made{std::vector<int64_t>(static_cast<size_t>(size), 0),
               std::vector<int64_t>(static_cast<size_t>(size), 0)};
  for (const Factor& f : factors) {
    if (f.to_axis != axis) continue;
    std::vector<int64_t>& to = f.from_axis == kChannels ? made.channel : made.packet;
    const int64_t step = f.from_axis == kRows ? f.from * pitch : f.from;
    for (int64_t i = 0; i < size; ++i) to[static_cast<size_t>(i)] += i / f.to % f.size * step;
  }
  return made;
}

// Four channels of a row, each from one channel of the input and from pixels next to each other.
void join_channels(const uint8_t* const from[4], const int64_t lane[4], int64_t width,
                   uint8_t* to) {
  const auto shift = [&](int j) { return static_cast<uint32_t>(lane[j] * 8); };
  const uint32_t a = shift(0), b = shift(1), c = shift(2), d = shift(3);
  for (int64_t p = 0; p < width; ++p) {
    uint32_t v[4];
    for (int j = 0; j < 4; ++j) std::memcpy(&v[j], from[j] + p * 4, 4);
    const uint32_t packet = (v[0] >> a & 0xff) | (v[1] >> b & 0xff) << 8 |
                            (v[2] >> c & 0xff) << 16 | (v[3] >> d & 0xff) << 24;
    std::memcpy(to + p * 4, &packet, 4);
  }
}

// Codes whose channels share packets with others in the value: each goes alone, but for columns
// that stay next to each other.
void Rearrange::move_codes(const NodeRun& node, const Factors& factors) const {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const Sources of_channel = sources(factors, kChannels, out.packets * 4, in.pitch);
  const Sources of_row = sources(factors, kRows, out.h, in.pitch);
  const Sources of_column = sources(factors, kColumns, out.w, in.pitch);
  bool together = true;
  for (size_t p = 0; p < of_column.channel.size(); ++p)
    together = together && !of_column.channel[p] && of_column.packet[p] == static_cast<int64_t>(p);
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const Rows rows = node.rows;
  const int64_t count = rows.end - rows.begin;
  parallel_for(
      out.packets * count, (together ? 4 : 16) * vectors_of(out, rows) + 1, [&](int64_t task, int) {
        const int64_t quad = task / count, row = rows.begin + task % count;
        const auto r = static_cast<size_t>(row);
        const int64_t channels = std::min<int64_t>(4, out.channels - quad * 4);
        for (int64_t n = 0; n < out.n; ++n) {
          const int64_t pixel = in.packet(n, 0, 0) + of_row.packet[r];
          uint8_t* const to = y + (quad * out.channel_stride + out.packet(n, row, 0)) * 4;
          int64_t channel[4], packet[4];
          for (int64_t j = 0; j < 4; ++j) {  // of channels that are not there: any
            const auto c = static_cast<size_t>(quad * 4 + std::min(j, channels - 1));
            channel[j] = of_channel.channel[c] + of_row.channel[r];
            packet[j] = of_channel.packet[c] + pixel;
          }
          if (together) {
            const uint8_t* from[4];
            int64_t lane[4];
            for (int64_t j = 0; j < 4; ++j) {
              from[j] = x + (channel[j] / 4 * in.channel_stride + packet[j]) * 4;
              lane[j] = channel[j] % 4;
            }
            join_channels(from, lane, out.w, to);
            continue;
          }
          for (int64_t p = 0; p < out.w; ++p) {
            const auto i = static_cast<size_t>(p);
            for (int64_t j = 0; j < 4; ++j) {
              const int64_t c = channel[j] + of_column.channel[i];
              to[p * 4 + j] =
                  x[(c / 4 * in.channel_stride + packet[j] + of_column.packet[i]) * 4 + c % 4];
            }
          }
        }
      });
}

const RegisterOp<Rearrange> kRearrange("rearrange", 1);

}  // namespace
}  // namespace tops
