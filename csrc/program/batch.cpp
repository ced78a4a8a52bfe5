// SPDX-License-Identifier: Apache-2.0
// A batch in pieces: as many images at a time as keep a network's values in the second-level cache,
// each piece on one thread.
#include <algorithm>
#include <cstring>

#include "base/threads.h"
#include "isa/isa.h"
#include "program/program.h"

namespace tops {
namespace {

constexpr int64_t kPieceBytes = 256 * 1024;
// Quads of fully connected weights that are cheaper to read once for the whole batch.
constexpr int64_t kSharedQuads = 4'000'000;

// Memory of one run of a plan, which the next run takes over.
struct Lease {
  explicit Lease(const MemoryPlan& p) : plan(p), arena(p.take_arena()) {}
  ~Lease() { plan.give_arena(std::move(arena)); }
  const MemoryPlan& plan;
  Buffer arena;
};

}  // namespace

int64_t Program::images_at_once(int64_t n, int64_t h, int64_t w) {
  if (n < 2 || nodes_.at(0).type().rank == 2) return n;
  int64_t shared = 0;
  for (const Node& node : nodes_) shared += node.op->shared_quads();
  if (shared > kSharedQuads) return n;
  const std::shared_ptr<const MemoryPlan> one = plan(1, h, w);
  if (one->band()) return 1;
  return std::clamp(kPieceBytes / std::max<int64_t>(1, one->arena_bytes()), int64_t{1}, n);
}

int64_t Program::peak_bytes(int64_t n, int64_t h, int64_t w) {
  const int64_t images = images_at_once(n, h, w);
  const int64_t at_once = images ? std::min<int64_t>(divide_up(n, images), num_threads()) : 1;
  return plan(images, h, w)->arena_bytes() * at_once;
}

std::vector<int64_t> Program::totals_offsets(int64_t n, int64_t h, int64_t w) {
  return plan(images_at_once(n, h, w), h, w)->totals_offsets();
}

void Program::run(const float* x, int64_t n, int64_t h, int64_t w, float* y,
                  const ChannelTotals* totals) {
  const int64_t images = images_at_once(n, h, w), pieces = images ? divide_up(n, images) : 1;
  const std::shared_ptr<const MemoryPlan> whole = plan(images, h, w);
  const int64_t rest = n - (pieces - 1) * images;
  const std::shared_ptr<const MemoryPlan> last = rest == images ? whole : plan(rest, h, w);
  const ActivationTensor& out = whole->grid(output_);
  const int64_t from = nodes_[0].type().channels * h * w, to = out.channels * out.h * out.w;
  const KernelTable& kernel = kernels();
  auto run_piece = [&](int64_t i, int) {
    const KernelScope scope(kernel);
    Lease lease(i + 1 < pieces ? *whole : *last);
    const int64_t first = i * images;
    if (!totals) return lease.plan.run(x + first * from, y + first * to, lease.arena);
    const int64_t before = first * totals->stride;
    const ChannelTotals own{totals->sums + before, totals->squares + before, totals->stride,
                            totals->offset};
    lease.plan.run(x + first * from, y + first * to, lease.arena, nullptr, &own);
  };
  if (pieces == 1)
    run_piece(0, 0);
  else
    parallel_for(pieces, pieces * whole->arena_bytes(), run_piece);
}

}  // namespace tops
