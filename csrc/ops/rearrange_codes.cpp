// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/move_rows.h"
#include "ops/rearrange.h"

namespace tops {
namespace {

// For each place of a row or column, the channel of the input that it adds, and the packets beyond
// the input's first pixel.
struct Sources {
  std::vector<int64_t> channel, packet;
};

Sources sources(const Factors& factors, size_t axis, int64_t size, int64_t pitch) {
  const auto count = static_cast<size_t>(size);
  Sources made{std::vector<int64_t>(count, 0), std::vector<int64_t>(count, 0)};
  for (const Factor& f : factors) {
    if (f.to_axis != axis) continue;
    std::vector<int64_t>& to = f.from_axis == kChannels ? made.channel : made.packet;
    const int64_t step = f.from_axis == kRows ? f.from * pitch : f.from;
    int64_t place = 0, inner = 0;
    for (int64_t& sum : to) {
      sum += place * step;
      if (++inner < f.to) continue;
      inner = 0;
      if (++place == f.size) place = 0;
    }
  }
  return made;
}

// The same of one channel after the other; a table would be as large as a flattened image.
class ChannelWalk {
 public:
  ChannelWalk(const Factors& factors, int64_t pitch, int64_t first) {
    for (const Factor& f : factors)
      if (f.to_axis == kChannels) {
        const int64_t place = first / f.to % f.size,
                      step = f.from_axis == kRows ? f.from * pitch : f.from;
        digits_.push_back({f, place, step});
        add(digits_.back(), place);
      }
    std::sort(digits_.begin(), digits_.end(),
              [](const Digit& a, const Digit& b) { return a.factor.to < b.factor.to; });
  }

  int64_t channel() const { return channel_; }
  int64_t packet() const { return packet_; }

  void next() {
    for (Digit& d : digits_) {
      add(d, 1);
      if (++d.place < d.factor.size) return;
      add(d, -d.factor.size);
      d.place = 0;
    }
  }

 private:
  struct Digit {
    Factor factor;
    int64_t place, step;
  };

  void add(const Digit& d, int64_t places) {
    (d.factor.from_axis == kChannels ? channel_ : packet_) += places * d.step;
  }

  std::vector<Digit> digits_;
  int64_t channel_ = 0, packet_ = 0;
};

// Columns [p, p + 4) that read four channels of a packet.
std::vector<bool> fours(const Sources& columns) {
  std::vector<bool> made(columns.channel.size(), false);
  for (size_t p = 0; p + 4 <= made.size(); ++p) {
    made[p] = columns.channel[p] % 4 == 0;
    for (size_t k = 1; k < 4; ++k)
      made[p] = made[p] && columns.packet[p + k] == columns.packet[p] &&
                columns.channel[p + k] == columns.channel[p] + static_cast<int64_t>(k);
  }
  return made;
}

// Codes whose channels share packets with others in the value: each goes alone, but for columns
// that stay next to each other, and for fours of channels that become columns.
class CodeMover {
 public:
  CodeMover(const NodeRun& node, const Factors& factors)
      : in_(node.in(0)),
        out_(node.out()),
        x_(node.x(0)),
        y_(node.y()),
        factors_(factors),
        rows_(sources(factors, kRows, out_.h, in_.pitch)),
        columns_(sources(factors, kColumns, out_.w, in_.pitch)),
        fours_(fours(columns_)) {
    for (size_t p = 0; p < columns_.channel.size(); ++p)
      runs_ = runs_ && !columns_.channel[p] && columns_.packet[p] == static_cast<int64_t>(p);
  }

  // Rows of four channels that one task moves.
  int64_t rows_a_task() const {
    return std::max<int64_t>(1, 2048 / std::max<int64_t>(1, out_.n * out_.w));
  }
  int64_t work(Rows rows) const { return (runs_ ? 4 : 16) * vectors_of(out_, rows) + 1; }

  // Rows [begin, end) of all quads in a row, `rows` of each.
  void move(int64_t begin, int64_t end, Rows rows) const {
    const int64_t count = rows.end - rows.begin;
    ChannelWalk walk(factors_, in_.pitch, begin / count * 4);
    for (int64_t quad = begin / count; quad * count < end; ++quad) {
      Lanes lanes;
      for (int64_t j = 0; j < 4; ++j) {
        lanes.channel[j] = walk.channel();
        lanes.packet[j] = walk.packet();
        if (quad * 4 + j + 1 < out_.channels) walk.next();  // those that are not there: any
      }
      const int64_t first = std::max(begin - quad * count, int64_t{0});
      for (int64_t i = first; i < std::min(count, end - quad * count); ++i)
        move_row(lanes, quad, rows.begin + i);
    }
  }

 private:
  // Of the four channels of a packet, in the input.
  struct Lanes {
    int64_t channel[4], packet[4];
  };

  void move_row(const Lanes& of_quad, int64_t quad, int64_t row) const {
    const auto r = static_cast<size_t>(row);
    for (int64_t n = 0; n < out_.n; ++n) {
      Lanes lanes = of_quad;
      const int64_t pixel = rows_.packet[r] + in_.packet(n, 0, 0);
      for (int64_t& channel : lanes.channel) channel += rows_.channel[r];
      for (int64_t& packet : lanes.packet) packet += pixel;
      uint8_t* const to = y_ + (quad * out_.channel_stride + out_.packet(n, row, 0)) * 4;
      if (runs_)
        move_run(lanes, to);
      else
        move_columns(lanes, to);
    }
  }

  const uint8_t* packet_of(int64_t channel, int64_t packet) const {
    return x_ + (channel / 4 * in_.channel_stride + packet) * 4;
  }

  void move_run(const Lanes& lanes, uint8_t* to) const {
    const uint8_t* from[4];
    int64_t lane[4];
    for (int64_t j = 0; j < 4; ++j) {
      from[j] = packet_of(lanes.channel[j], lanes.packet[j]);
      lane[j] = lanes.channel[j] % 4;
    }
    join_channels(from, lane, out_.w, to);
  }

  void move_columns(const Lanes& lanes, uint8_t* to) const {
    bool aligned = true;
    for (const int64_t c : lanes.channel) aligned = aligned && c % 4 == 0;
    for (int64_t p = 0; p < out_.w;) {
      const auto i = static_cast<size_t>(p);
      if (aligned && fours_[i]) {
        uint8_t bytes[16];
        for (int64_t j = 0; j < 4; ++j) {
          const uint8_t* const from = packet_of(lanes.channel[j] + columns_.channel[i],
                                                lanes.packet[j] + columns_.packet[i]);
          for (int64_t k = 0; k < 4; ++k) bytes[k * 4 + j] = from[k];
        }
        std::memcpy(to + p * 4, bytes, sizeof bytes);
        p += 4;
        continue;
      }
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t c = lanes.channel[j] + columns_.channel[i];
        to[p * 4 + j] = packet_of(c, lanes.packet[j] + columns_.packet[i])[c % 4];
      }
      ++p;
    }
  }

  const ActivationTensor &in_, &out_;
  const uint8_t* const x_;
  uint8_t* const y_;
  const Factors& factors_;
  const Sources rows_, columns_;
  const std::vector<bool> fours_;
  bool runs_ = true;
};

}  // namespace

void move_codes(const NodeRun& node, const Factors& factors) {
  const CodeMover mover(node, factors);
  const Rows rows = node.rows;
  const int64_t all = node.out().packets * (rows.end - rows.begin), each = mover.rows_a_task();
  parallel_for(divide_up(all, each), mover.work(rows), [&](int64_t task, int) {
    mover.move(task * each, std::min(all, (task + 1) * each), rows);
  });
}

}  // namespace tops
