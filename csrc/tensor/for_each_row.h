// SPDX-License-Identifier: Apache-2.0
// Walking the image rows of a tensor, for operators that work pixel by pixel.
#pragma once

#include "base/threads.h"
#include "tensor/tensor.h"

namespace tops {

// The packets of channels [4 quad, 4 quad + 4) at one place: one pointer for u8, one a channel for
// float.
inline Packets packets_at(const ActivationTensor& g, uint8_t* data, int64_t quad, int64_t packet) {
  Packets c = {{nullptr, nullptr, nullptr, nullptr}};
  if (!g.is_float) {
    c.channel[0] = data + (quad * g.channel_stride + packet) * 4;
    return c;
  }
  for (int64_t j = 0; j < 4 && quad * 4 + j < g.channels; ++j)
    c.channel[j] = data + ((quad * 4 + j) * g.channel_stride + packet) * 4;
  return c;
}

inline int64_t quads_of(const ActivationTensor& g) { return (g.channels + 3) / 4; }

// Cost of touching every pixel of some rows once, for parallel_for.
inline int64_t vectors_of(const ActivationTensor& g, Rows rows) {
  return g.packets * g.n * (rows.end - rows.begin) * g.pitch / 16;
}

// Calls body(quad, n, y) for these rows of every four channels.
template <class Body>
void for_rows(const ActivationTensor& g, Rows rows, const Body& body) {
  parallel_for(quads_of(g), vectors_of(g, rows), [&](int64_t quad, int) {
    for (int64_t n = 0; n < g.n; ++n)
      for (int64_t y = rows.begin; y < rows.end; ++y) body(quad, n, y);
  });
}

inline void fill_all_halos(const ActivationTensor& g, Rows rows, uint8_t* data, uint32_t value) {
  if (g.halo == 0 && g.margin == 0) return;
  const int64_t count = rows.end - rows.begin;
  parallel_for(g.packets, g.packets * g.n * (2 * g.margin * g.pitch + count) / 8,
               [&](int64_t c, int) { fill_halo(g, rows, data, value, c, c + 1); });
}

}  // namespace tops
