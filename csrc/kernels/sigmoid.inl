// SPDX-License-Identifier: Apache-2.0
// The sigmoid as every kernel computes it: the same bits on every instruction set.

// e^x for x in [-86, 0], to two units in the last place; NaN stays NaN. With n = round(x / ln 2)
// the rest |r| <= ln 2 / 2, where the Taylor series to r^7 is off by less than 6e-9. ln 2 in two
// parts: n times the first, of nine bits, is exact.
static TOPS_INLINE V::F exp_negative(V::F x) {
  const V::I n = V::round(V::mulf(x, V::set1f(1.44269504f)));
  const V::F whole = V::to_f(n);
  V::F r = V::fused(whole, V::set1f(-0.693359375f), x);
  r = V::fused(whole, V::set1f(2.12194440e-4f), r);
  V::F p = V::set1f(1.0f / 5040);
  p = V::fused(p, r, V::set1f(1.0f / 720));
  p = V::fused(p, r, V::set1f(1.0f / 120));
  p = V::fused(p, r, V::set1f(1.0f / 24));
  p = V::fused(p, r, V::set1f(1.0f / 6));
  p = V::fused(p, r, V::set1f(0.5f));
  p = V::fused(p, r, V::set1f(1.0f));
  p = V::fused(p, r, V::set1f(1.0f));
  return V::as_f(V::add(V::as_i(p), V::mul(n, V::set1(1 << 23))));
}

// 1 / (1 + e^-x), from e = e^-|x| so that nothing overflows: x < 0 gives e / (1 + e).
static TOPS_INLINE V::F sigmoid(V::F x) {
  const V::F one = V::set1f(1.0f);
  // The second operand where one is NaN.
  const V::F e = exp_negative(V::maxf(V::set1f(-86.0f), V::minf(V::mulf(x, V::set1f(-1.0f)), x)));
  const V::F not_negative = V::to_f(V::sub(V::set1(1), V::template shr<31>(V::as_i(x))));
  return V::divf(V::maxf(not_negative, e), V::addf(one, e));
}
