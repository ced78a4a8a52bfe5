// SPDX-License-Identifier: Apache-2.0
// Inside a policy whose dot products add four products exactly to 32-bit sums in one step: nothing
// is narrowed, nothing is widened.

static constexpr int64_t kNarrowSteps = 0;
static TOPS_INLINE I dot_narrow(I acc, I x, I w) { return dot_ternary(acc, x, w); }
static TOPS_INLINE I dot_narrow_at(I acc, I x, const uint8_t* w) {
  return dot_ternary(acc, x, load(w));
}
static TOPS_INLINE I add_narrow(I acc, I narrow) { return add(acc, narrow); }
static TOPS_INLINE I product_narrow(I x, I w) { return dot_int8(set1(0), x, w); }
static constexpr int64_t kInt8QuadBytes = 4;
using Wide = I;
static TOPS_INLINE Wide wide_input(I x) { return x; }
static TOPS_INLINE Wide wide_weights(I w) { return w; }
static TOPS_INLINE Wide wide_weight(const uint8_t* quad) {
  int32_t w;
  __builtin_memcpy(&w, quad, 4);
  return set1(w);
}
static TOPS_INLINE I dot_wide(I acc, Wide x, Wide w) { return dot_int8(acc, x, w); }
static TOPS_INLINE void widen_quads(const uint8_t*, uint8_t*) {}
