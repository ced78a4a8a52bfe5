// SPDX-License-Identifier: Apache-2.0
#include "engine/linear.h"

#include <algorithm>
#include <cstring>

#include "engine/threads.h"
#include "isa/isa.h"

namespace tops {

bool matvec_fits(Weights weights, int64_t k) {
  return weights == Weights::kInt8 || (weights == Weights::kTernary && k < 2147483647 / (255 * 64));
}

void matvec_rows(Weights weights, const uint8_t* x, int64_t m, int64_t k, const uint8_t* w,
                 int64_t n, int32_t* acc) {
  const KernelTable& kernel = kernels();
  const int64_t quads = (k + 3) / 4, stream = (quads + 63) / 64 * 64;
  // Rows a task: enough that a task outweighs handing it out.
  const int64_t rows = std::max<int64_t>(16, (1 << 16) / std::max<int64_t>(1, quads)) / 4 * 4;
  const int64_t tasks = num_threads() > 1 ? (n + rows - 1) / rows : 1;
  const int64_t step = tasks > 1 ? rows : n;
  Buffer streams(weights == Weights::kTernary ? 4 * stream + kSlackBytes : 0);
  for (int64_t i = 0; i < m; ++i) {
    const uint8_t* const row = x + i * quads * 4;
    if (weights == Weights::kTernary) {
      uint8_t* const s = streams.data();
      std::memset(s, 0, static_cast<size_t>(4 * stream));
      for (int64_t q = 0; q < quads; ++q) {
        s[q] = row[4 * q];
        s[stream + q] = row[4 * q + 1];
        s[2 * stream + q] = row[4 * q + 2];
        s[3 * stream + q] = row[4 * q + 3];
      }
    }
    parallel_for(tasks, n * quads / 16, [&](int64_t t, int) {
      const int64_t begin = t * step, end = std::min(n, begin + step);
      if (weights == Weights::kTernary)
        kernel.matvec_ternary(streams.data(), stream, w, quads, begin, end, acc + i * n);
      else
        kernel.matvec_int8(row, reinterpret_cast<const int8_t*>(w), quads * 4, begin, end,
                           acc + i * n);
    });
  }
}

}  // namespace tops
