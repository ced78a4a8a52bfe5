// SPDX-License-Identifier: Apache-2.0
// Random convolutions, for the tests of the kernels.
#pragma once

#include <cstdio>
#include <string>

#include "kernels/table.h"
#include "support.h"
#include "tensor/conv_input.h"

namespace tops::test {

struct Case {
  int64_t n, groups, i, o, r, s, h, w;
  Window window;
  Weights kind;
  bool float_out;
  int32_t zp, yzp;
  float y_scale;
  std::string text() const {
    char b[256];
    std::snprintf(
        b, sizeof b,
        "n%ld g%ld i%ld o%ld r%ld s%ld %ldx%ld stride %ld,%ld pad %ld,%ld dil %ld,%ld kind %d f%d",
        n, groups, i, o, r, s, h, w, window.stride_h, window.stride_w, window.pad_h, window.pad_w,
        window.dil_h, window.dil_w, static_cast<int>(kind), float_out);
    return b;
  }
};

inline Case draw(Rng& g) {
  Case c{};
  c.groups = g.in(0, 3) ? 1 : g.in(2, 4);
  c.i = g.in(0, 2) ? g.in(1, 13) : 4 * g.in(1, 5);
  c.o = c.groups * (g.in(0, 2) ? g.in(1, 11) : 8 * g.in(1, 2));
  c.r = g.in(1, 4), c.s = g.in(1, 4);
  c.window = {g.in(1, 3), g.in(1, 3), g.in(0, 3), g.in(0, 3), g.in(1, 2), g.in(1, 2)};
  if (g.in(0, 1)) c.window = {1, 1, c.r / 2, c.s / 2, 1, 1};
  c.n = g.in(1, 3);
  c.h = (c.r - 1) * c.window.dil_h + 1 + g.in(0, 12);
  c.w = (c.s - 1) * c.window.dil_w + 1 + g.in(0, 40);
  c.kind = g.in(0, 1) ? Weights::kTernary : Weights::kInt8;
  c.float_out = g.in(0, 2) == 0;
  c.zp = static_cast<int32_t>(g.in(0, 255)), c.yzp = static_cast<int32_t>(g.in(0, 255));
  c.y_scale = g.real(0.02f, 0.3f);
  return c;
}

}  // namespace tops::test
