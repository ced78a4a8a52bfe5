// SPDX-License-Identifier: Apache-2.0
#include "tensor/strided_copy.h"

#include <algorithm>
#include <cstring>

#include "base/threads.h"

namespace tops {
namespace {

constexpr int64_t kCell = 4;
// Rows and columns of a tile: a cache line of cells.
constexpr int64_t kTile = 16;

void copy_cell(const uint8_t* from, uint8_t* to) { std::memcpy(to, from, kCell); }

// Axes longer than one cell, the one of nearest cells of the copy last; neighbors that are one axis
// on both sides become one.
std::vector<CopyAxis> coalesced(std::vector<CopyAxis> axes) {
  axes.erase(
      std::remove_if(axes.begin(), axes.end(), [](const CopyAxis& a) { return a.size == 1; }),
      axes.end());
  std::sort(axes.begin(), axes.end(),
            [](const CopyAxis& a, const CopyAxis& b) { return a.to > b.to; });
  std::vector<CopyAxis> made;
  for (const CopyAxis& a : axes) {
    const int64_t n = a.size;
    if (!made.empty() && made.back().from == a.from * n && made.back().to == a.to * n)
      made.back() = {made.back().size * n, a.from, a.to};
    else
      made.push_back(a);
  }
  return made;
}

// Takes the axis for the rows of tiles out of those left: the source's nearest cells, or the copy's
// where the columns are both.
CopyAxis take_rows(std::vector<CopyAxis>& axes, bool runs) {
  if (axes.empty()) return {1, 0, 0};
  auto found = axes.end() - 1;
  if (!runs)
    found = std::min_element(axes.begin(), axes.end(),
                             [](const CopyAxis& a, const CopyAxis& b) { return a.from < b.from; });
  const CopyAxis rows = *found;
  axes.erase(found);
  return rows;
}

void copy_runs(const uint8_t* from, uint8_t* to, const CopyAxis& rows, int64_t count, int64_t run) {
  for (int64_t r = 0; r < count; ++r) {
    const uint8_t* const x = from + r * rows.from * kCell;
    uint8_t* const y = to + r * rows.to * kCell;
    if (run >= kTile) {
      std::memcpy(y, x, static_cast<size_t>(run * kCell));
      continue;
    }
    for (int64_t i = 0; i < run; ++i) copy_cell(x + i * kCell, y + i * kCell);
  }
}

using Four = uint32_t __attribute__((vector_size(16)));

Four load(const uint8_t* at) {
  Four v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

// Four cells of four rows as four rows of the copy, `from` and `to` cells apart.
void transpose_four(const uint8_t* x, int64_t from, uint8_t* y, int64_t to) {
  const Four a = load(x), b = load(x + from * kCell), c = load(x + 2 * from * kCell),
             d = load(x + 3 * from * kCell);
  const Four ab = {a[0], b[0], a[1], b[1]}, cd = {c[0], d[0], c[1], d[1]};
  const Four rest_ab = {a[2], b[2], a[3], b[3]}, rest_cd = {c[2], d[2], c[3], d[3]};
  const Four made[4] = {{ab[0], ab[1], cd[0], cd[1]},
                        {ab[2], ab[3], cd[2], cd[3]},
                        {rest_ab[0], rest_ab[1], rest_cd[0], rest_cd[1]},
                        {rest_ab[2], rest_ab[3], rest_cd[2], rest_cd[3]}};
  for (int64_t i = 0; i < 4; ++i) std::memcpy(y + i * to * kCell, &made[i], sizeof made[i]);
}

// Cells of the source next to each other in a column of the tile, of the copy in a row.
void transpose_tile(const uint8_t* from, uint8_t* to, const CopyAxis& rows, int64_t count,
                    const CopyAxis& columns, int64_t begin, int64_t end) {
  const auto copy = [&](int64_t r, int64_t c) {
    copy_cell(from + (r + c * columns.from) * kCell, to + (r * rows.to + c) * kCell);
  };
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    int64_t c = begin;
    for (; c + 4 <= end; c += 4)
      transpose_four(from + (r + c * columns.from) * kCell, columns.from,
                     to + (r * rows.to + c) * kCell, rows.to);
    for (; c < end; ++c)
      for (int64_t i = 0; i < 4; ++i) copy(r + i, c);
  }
  for (; r < count; ++r)
    for (int64_t c = begin; c < end; ++c) copy(r, c);
}

// Both ways a cache line is read or written a cell at a time; those of a tile stay in the cache.
void copy_tiles(const uint8_t* from, uint8_t* to, const CopyAxis& rows, int64_t count,
                const CopyAxis& columns) {
  for (int64_t begin = 0; begin < columns.size; begin += kTile) {
    const int64_t end = std::min(begin + kTile, columns.size);
    if (rows.from == 1 && columns.to == 1) {
      transpose_tile(from, to, rows, count, columns, begin, end);
      continue;
    }
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* const x = from + r * rows.from * kCell;
      uint8_t* const y = to + r * rows.to * kCell;
      for (int64_t i = begin; i < end; ++i)
        copy_cell(x + i * columns.from * kCell, y + i * columns.to * kCell);
    }
  }
}

}  // namespace

void copy_strided(const uint8_t* from, uint8_t* to, std::vector<CopyAxis> axes) {
  int64_t cells = 1;
  for (const CopyAxis& a : axes) cells *= a.size;
  if (!cells) return;
  axes = coalesced(std::move(axes));
  const CopyAxis columns = axes.empty() ? CopyAxis{1, 1, 1} : axes.back();
  if (!axes.empty()) axes.pop_back();
  const bool runs = columns.from == 1 && columns.to == 1;
  const CopyAxis rows = take_rows(axes, runs);
  const int64_t strips = (rows.size + kTile - 1) / kTile;
  int64_t tasks = strips;
  for (const CopyAxis& a : axes) tasks *= a.size;
  parallel_for(tasks, runs ? cells / 8 + tasks : 2 * cells, [&](int64_t task, int) {
    const int64_t first = task % strips * kTile;
    int64_t rest = task / strips, x = first * rows.from, y = first * rows.to;
    for (auto a = axes.rbegin(); a != axes.rend(); ++a) {
      x += rest % a->size * a->from;
      y += rest % a->size * a->to;
      rest /= a->size;
    }
    const int64_t count = std::min(kTile, rows.size - first);
    if (runs)
      copy_runs(from + x * kCell, to + y * kCell, rows, count, columns.size);
    else
      copy_tiles(from + x * kCell, to + y * kCell, rows, count, columns);
  });
}

}  // namespace tops
