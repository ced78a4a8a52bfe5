// SPDX-License-Identifier: Apache-2.0
// Copying pixels to other rows, columns and channels: what slices, shuffles and nearest-neighbor
// resizing have in common.
#pragma once

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
};

// source(channel, row): the SourceRow of an output row. whole: channels keep their places in the
// quads, so u8 packets move as they are.
template <class Source>
void move_rows(const NodeRun& node, bool whole, const MovedColumns& columns, const Source& source) {
  const ActivationTensor &in = node.in(0), &out = node.out();
  const uint8_t* const x = node.x(0);
  uint8_t* const y = node.y();
  const Rows rows = node.rows;
  const bool packets = out.is_float || whole;
  const int64_t step = out.is_float ? 1 : 4;
  parallel_for(out.packets, 4 * vectors_of(out, rows), [&](int64_t c, int) {
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        uint8_t* const to = y + (c * out.channel_stride + out.packet(n, row, 0)) * 4;
        for (int64_t j = 0; j < (packets ? 1 : 4); ++j) {
          const bool absent = c * step + j >= out.channels;
          const SourceRow from = absent ? SourceRow{} : source(c * step + j, row);
          const int64_t line = in.packet(n, from.line, from.column);
          for (int64_t p = 0; p < out.w; ++p) {
            const auto i = static_cast<size_t>(p);
            const int64_t channel = from.channel + columns.extra[i];
            const int64_t packet = line + columns.column[i];
            if (packets)
              std::memcpy(to + p * 4, x + (channel / step * in.channel_stride + packet) * 4, 4);
            else
              to[p * 4 + j] =
                  absent ? 0 : x[(channel / 4 * in.channel_stride + packet) * 4 + channel % 4];
          }
        }
      }
  });
}

}  // namespace tops
