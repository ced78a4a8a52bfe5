// SPDX-License-Identifier: Apache-2.0
// A vector, or the n lanes that are left of a row. Whole vectors go by plain loads and stores:
// masked stores cost three times as much on Zen 5.

static TOPS_INLINE V::I load_some(const void* p, int64_t n) {
  return n >= V::kLanes ? V::load(p) : V::load_n(p, n);
}

static TOPS_INLINE void store_some(void* p, V::I v, int64_t n) {
  if (n >= V::kLanes)
    V::store(p, v);
  else
    V::store_n(p, v, n);
}
