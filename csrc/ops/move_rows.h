// SPDX-License-Identifier: Apache-2.0
// Copying pixels to other rows, columns and channels: what slices, shuffles and nearest-neighbor
// resizing have in common.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "program/op_kernel.h"
#include "tensor/for_each_row.h"

namespace tops {

// Source of an output row: its input channel, line and first column.
struct SourceRow {
  int64_t channel, line, column;
};

// Output pixel p of a row reads column row.column + column[p] of channel row.channel + extra[p].
struct MovedColumns {
  std::vector<int64_t> column, extra;
  explicit MovedColumns(int64_t width)
      : column(static_cast<size_t>(width)), extra(static_cast<size_t>(width)) {
    for (int64_t p = 0; p < width; ++p) column[static_cast<size_t>(p)] = p;
  }
  // Are they next to each other, in one channel?
  bool straight() const {
    for (size_t p = 0; p < column.size(); ++p)
      if (extra[p] || column[p] != static_cast<int64_t>(p)) return false;
    return true;
  }
};

inline uint32_t load_packet(const uint8_t* packet) {
  uint32_t v;
  std::memcpy(&v, packet, 4);
  return v;
}

// Four channels of a row, each from one channel of the input and from pixels next to each other.
inline void join_channels(const uint8_t* const from[4], const int64_t lane[4], int64_t width,
                          uint8_t* __restrict to) {
  const uint8_t *const x0 = from[0], *const x1 = from[1], *const x2 = from[2], *const x3 = from[3];
  const int a = static_cast<int>(lane[0]) * 8, b = static_cast<int>(lane[1]) * 8;
  const int c = static_cast<int>(lane[2]) * 8, d = static_cast<int>(lane[3]) * 8;
  for (int64_t p = 0; p < width; ++p) {
    const uint32_t low =
        (load_packet(x0 + p * 4) >> a & 0xff) | (load_packet(x1 + p * 4) >> b & 0xff) << 8;
    const uint32_t high = (load_packet(x2 + p * 4) >> c & 0xff) | load_packet(x3 + p * 4) >> d << 8;
    const uint32_t packet = low | high << 16;
    std::memcpy(to + p * 4, &packet, 4);
  }
}

// source(channel, row): the SourceRow of an output row. whole: channels keep their places in the
// quads, so u8 packets move as they are.
template <class Source>
void move_rows(const NodeRun& node, bool whole, const MovedColumns& columns, const Source& source) {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const Rows rows = node.rows;
  const bool packets = out.is_float || whole, straight = columns.straight();
  const int64_t step = out.is_float ? 1 : 4, shift = out.is_float ? 0 : 2;
  const auto packet_of = [&](int64_t channel) {
    return x + (channel >> shift) * in.channel_stride * 4;
  };
  parallel_for(out.packets, (straight ? 1 : 4) * vectors_of(out, rows), [&](int64_t c, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        uint8_t* const to = y + (c * out.channel_stride + out.packet(n, row, 0)) * 4;
        const uint8_t* from[4];
        SourceRow of[4];
        int64_t lane[4], line[4];
        for (int64_t j = 0; j < 4; ++j) {  // of channels that are not there: any
          of[j] = source(std::min(c * step + (packets ? 0 : j), out.channels - 1), row);
          line[j] = in.packet(n, of[j].line, of[j].column);
          from[j] = packet_of(of[j].channel) + line[j] * 4;
          lane[j] = of[j].channel % 4;
        }
        if (straight && packets) {
          std::memcpy(to, from[0], static_cast<size_t>(out.w) * 4);
          continue;
        }
        if (straight) {
          join_channels(from, lane, out.w, to);
          continue;
        }
        for (int64_t p = 0; p < out.w; ++p) {
          const auto i = static_cast<size_t>(p);
          for (int64_t j = 0; j < (packets ? 1 : 4); ++j) {
            const int64_t channel = of[j].channel + columns.extra[i];
            const uint8_t* const packet = packet_of(channel) + (line[j] + columns.column[i]) * 4;
            if (packets)
              std::memcpy(to + p * 4, packet, 4);
            else
              to[p * 4 + j] = packet[channel & 3];
          }
        }
      }
  });
}

}  // namespace tops
