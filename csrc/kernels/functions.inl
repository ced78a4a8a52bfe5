// SPDX-License-Identifier: Apache-2.0
// Functions of floats that networks apply to whole maps.

template <FloatMap kMap>
static TOPS_INLINE V::F mapped(V::F x, V::F a) {
  if (kMap == FloatMap::kSigmoid) return sigmoid(x);
  if (kMap == FloatMap::kSilu) return V::mulf(x, sigmoid(x));
  return sloped(x, a);
}

template <FloatMap kMap>
static void map_row(float a, const float* x, int64_t n, float* y) {
  const V::F factor = V::set1f(a);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    store_some(y + i, V::as_i(mapped<kMap>(V::as_f(load_some(x + i, m)), factor)), m);
  }
}

static void map_floats(FloatMap map, float a, const float* x, int64_t n, float* y) {
  if (map == FloatMap::kSigmoid) return map_row<FloatMap::kSigmoid>(a, x, n, y);
  if (map == FloatMap::kSilu) return map_row<FloatMap::kSilu>(a, x, n, y);
  map_row<FloatMap::kLeakyRelu>(a, x, n, y);
}
