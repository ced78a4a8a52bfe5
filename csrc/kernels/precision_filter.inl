// SPDX-License-Identifier: Apache-2.0
// The precision filter of one block of rollouts, on vectors that the compiler splits into those of
// the instruction set: F is one, or a plain double. No contraction, divisions are divisions: the
// same bits everywhere.

template <class F, class Real>
static TOPS_INLINE F spread(Real v) {
  return F{} + v;
}

template <class F, class Real>
static TOPS_INLINE F get(const Real* p) {
  F v;
  __builtin_memcpy(&v, p, sizeof(F));
  return v;
}

template <class F, class Real>
static TOPS_INLINE void put(Real* p, const F& v) {
  __builtin_memcpy(p, &v, sizeof(F));
}

// Of a symmetric matrix whose lower triangle is stored.
static constexpr int lower(int i, int j) { return i >= j ? i * (i + 1) / 2 + j : lower(j, i); }

template <class F, int D>
struct Belief {
  F m[D], p[D * (D + 1) / 2];
};

// Scalars of one step: of each sensor the least variance, beta's bound and 1 / (alpha R0).
template <class Real>
struct StepScalars {
  Real rho, kept;  // kept: what keeps beta / alpha where a reading is missing
  Real per_alpha, per_new_alpha;
  Real *least, *bound, *unit;
  Real* before;  // room for the betas of one block
};

// m = A m + drive, P = A P A' + Q.
template <class F, class Real, int D>
static TOPS_INLINE void predict(const PrecisionArgs<Real>& a, const F* drive, Belief<F, D>& b) {
  F moved[D], product[D][D];
  for (int i = 0; i < D; ++i) {
    moved[i] = drive[i];
    for (int k = 0; k < D; ++k) moved[i] = moved[i] + a.a[i * D + k] * b.m[k];
    for (int j = 0; j < D; ++j) {
      product[i][j] = a.a[i * D] * b.p[lower(0, j)];
      for (int k = 1; k < D; ++k) product[i][j] = product[i][j] + a.a[i * D + k] * b.p[lower(k, j)];
    }
  }
  for (int i = 0; i < D; ++i) {
    b.m[i] = moved[i];
    for (int j = 0; j <= i; ++j) {
      F sum = spread<F>(a.q[i * D + j]);
      for (int k = 0; k < D; ++k) sum = sum + product[i][k] * a.a[j * D + k];
      b.p[lower(i, j)] = sum;
    }
  }
}

// A sensor's view of the belief: h = P c', the variance c P c' and the expected reading.
template <class F, int D>
struct SensorView {
  F h[D], variance, expected;

  template <class Real>
  TOPS_INLINE SensorView(const Real* c, const Belief<F, D>& b) {
    variance = spread<F>(Real(0));
    expected = spread<F>(Real(0));
    for (int i = 0; i < D; ++i) {
      h[i] = b.p[lower(i, 0)] * c[0];
      for (int j = 1; j < D; ++j) h[i] = h[i] + b.p[lower(i, j)] * c[j];
      variance = variance + h[i] * c[i];
      expected = expected + b.m[i] * c[i];
    }
  }
};

// A reading that is not finite, or so large that its square would not be, is missing.
#define TOPS_PRESENT(y) (((y) < Real(1e15)) & ((y) > Real(-1e15)))

// One reading by a rank-one update, its variance as learned so far.
template <class F, class Real, int D>
static TOPS_INLINE void absorb_reading(const Real* c, const F& y, const F& variance,
                                       Belief<F, D>& b) {
  const SensorView<F, D> view(c, b);
  const F zero = spread<F>(Real(0)), one = spread<F>(Real(1));
  const auto present = TOPS_PRESENT(y);
  const F gain = present ? one / (view.variance + variance) : zero;
  const F error = present ? y - view.expected : zero;
  for (int i = 0; i < D; ++i) {
    const F k = view.h[i] * gain;
    b.m[i] = b.m[i] + k * error;
    for (int j = 0; j <= i; ++j) b.p[lower(i, j)] = b.p[lower(i, j)] - k * view.h[j];
  }
}

// beta after a reading, of which the posterior says what was expected, and with which variance.
template <class F, class Real>
static TOPS_INLINE F updated_beta(const F& y, const F& expected, const F& variance, const F& beta,
                                  const StepScalars<Real>& s, int64_t i) {
  const F zero = spread<F>(Real(0)), bound = spread<F>(s.bound[i]);
  const F error = y - expected;
  const F made = s.rho * beta + Real(0.5) * (error * error + (variance > zero ? variance : zero));
  const F kept = made < bound ? made : bound;
  return TOPS_PRESENT(y) ? kept : s.kept * beta;
}

template <class F, class Real, int D>
static TOPS_INLINE F learned_beta(const Real* c, const F& y, const F& beta,
                                  const StepScalars<Real>& s, int64_t i, const Belief<F, D>& b) {
  const SensorView<F, D> view(c, b);
  return updated_beta<F, Real>(y, view.expected, view.variance, beta, s, i);
}

// Step t of the block at rollout `at`; state: m, P and beta of the block.
template <class F, class Real, int D>
static TOPS_INLINE void filter_step(const PrecisionArgs<Real>& a, const StepScalars<Real>& s,
                                    int64_t t, int64_t at, Real* state) {
  constexpr int kTriangle = D * (D + 1) / 2, kLanes = sizeof(F) / sizeof(Real);
  Belief<F, D> b;
  F drive[D];
  for (int i = 0; i < D; ++i) {
    b.m[i] = get<F>(state + i * kLanes);
    drive[i] = a.drive ? get<F>(a.drive + (t * D + i) * a.rollouts + at) : spread<F>(Real(0));
  }
  for (int i = 0; i < kTriangle; ++i) b.p[i] = get<F>(state + (D + i) * kLanes);
  predict<F, Real, D>(a, drive, b);
  Real* const betas = state + (D + kTriangle) * kLanes;
  const Real* const y = a.y + t * a.sensors * a.rollouts + at;
  const Belief<F, D> predicted = b;
  const int64_t sweeps = a.learn ? a.rule.sweeps : 1;
  if (sweeps > 1) __builtin_memcpy(s.before, betas, sizeof(Real) * kLanes * a.sensors);
  const Real* const before = sweeps > 1 ? s.before : betas;
  for (int64_t sweep = 0; sweep < sweeps; ++sweep) {
    const Real per_alpha = sweep ? s.per_new_alpha : s.per_alpha;
    if (sweep) b = predicted;
    for (int64_t i = 0; i < a.sensors; ++i) {
      const F learned = get<F>(betas + i * kLanes) * per_alpha, least = spread<F>(s.least[i]);
      absorb_reading<F, Real, D>(a.c + i * D, get<F>(y + i * a.rollouts),
                                 learned > least ? learned : least, b);
    }
    for (int64_t i = 0; i < a.sensors && a.learn; ++i)
      put(betas + i * kLanes, learned_beta<F, Real, D>(a.c + i * D, get<F>(y + i * a.rollouts),
                                                       get<F>(before + i * kLanes), s, i, b));
  }
  for (int64_t i = 0; i < a.sensors && a.residuals; ++i)
    put(a.residuals + (t * a.sensors + i) * a.rollouts + at,
        get<F>(betas + i * kLanes) * s.unit[i]);
  for (int i = 0; i < D; ++i) {
    put(state + i * kLanes, b.m[i]);
    if (a.means) put(a.means + (t * D + i) * a.rollouts + at, b.m[i]);
  }
  for (int i = 0; i < kTriangle; ++i) put(state + (D + i) * kLanes, b.p[i]);
}

// Scalars of a step after which alpha is `after`.
template <class Real>
static TOPS_INLINE void set_scalars(const Real* r0, int64_t sensors, const PrecisionRule& rule,
                                    double before, double after, StepScalars<Real>& s) {
  s.rho = static_cast<Real>(rule.rho);
  s.per_alpha = static_cast<Real>(1.0 / before);
  s.per_new_alpha = static_cast<Real>(1.0 / after);
  s.kept = static_cast<Real>(after / before);
  for (int64_t i = 0; i < sensors; ++i) {
    const double nominal = static_cast<double>(r0[i]);
    s.least[i] = static_cast<Real>(nominal / rule.cap);
    s.bound[i] = static_cast<Real>(after * nominal / rule.floor);
    s.unit[i] = static_cast<Real>(1.0 / (after * nominal));
  }
}

// Copies the state of one block between [rows][B] and [rows][lanes].
template <bool kIn, class Real>
static TOPS_INLINE void move_state(Real* all, int64_t rows, int64_t rollouts, int64_t lanes,
                                   Real* block) {
  for (int64_t i = 0; i < rows; ++i)
    __builtin_memcpy(kIn ? block + i * lanes : all + i * rollouts,
                     kIn ? all + i * rollouts : block + i * lanes,
                     static_cast<size_t>(lanes) * sizeof(Real));
}

// Whole blocks [first, last) of one tile through all steps.
template <class F, class Real, int D>
static void filter_tile_of(const PrecisionArgs<Real>& a, int64_t first, int64_t last,
                           Real* scratch) {
  constexpr int64_t kTriangle = D * (D + 1) / 2, kLanes = sizeof(F) / sizeof(Real);
  StepScalars<Real> s{};
  s.least = scratch;
  s.bound = scratch + a.sensors;
  s.unit = scratch + 2 * a.sensors;
  s.before = scratch + 3 * a.sensors;
  Real* const states = s.before + a.sensors * kLanes;
  const int64_t room = (D + kTriangle + a.sensors) * kLanes;
  for (int64_t at = first; at < last; at += kLanes) {
    Real* const state = states + (at - first) / kLanes * room;
    move_state<true>(a.m + at, D, a.rollouts, kLanes, state);
    move_state<true>(a.p + at, kTriangle, a.rollouts, kLanes, state + D * kLanes);
    move_state<true>(a.beta + at, a.sensors, a.rollouts, kLanes, state + (D + kTriangle) * kLanes);
  }
  double alpha = a.alpha;
  for (int64_t t = 0; t < a.steps; ++t) {
    const double after = a.learn ? a.rule.rho * alpha + 0.5 : alpha;
    set_scalars(a.r0, a.sensors, a.rule, alpha, after, s);
    alpha = after;
    for (int64_t at = first; at < last; at += kLanes)
      filter_step<F, Real, D>(a, s, t, at, states + (at - first) / kLanes * room);
  }
  for (int64_t at = first; at < last; at += kLanes) {
    Real* const state = states + (at - first) / kLanes * room;
    move_state<false>(a.m + at, D, a.rollouts, kLanes, state);
    move_state<false>(a.p + at, kTriangle, a.rollouts, kLanes, state + D * kLanes);
    move_state<false>(a.beta + at, a.sensors, a.rollouts, kLanes, state + (D + kTriangle) * kLanes);
  }
}

// n lanes of a sensor's row; lanes of `bits` get `bit` where the reading is missing or the residual
// is above the threshold.
template <class F>
static TOPS_INLINE void update_lanes(const UpdateArgs& a, const StepScalars<float>& s, int64_t i,
                                     int64_t at, size_t n, int32_t* bits, int32_t bit) {
  const int64_t row = i * a.rollouts + at;
  F y = {}, expected = {}, variance = {}, before = {};
  __builtin_memcpy(&y, a.y + row, n * 4);
  __builtin_memcpy(&expected, a.expected + row, n * 4);
  __builtin_memcpy(&variance, a.variance + row, n * 4);
  __builtin_memcpy(&before, a.beta + row, n * 4);
  const F beta = updated_beta<F, float>(y, expected, variance, before, s, i);
  const F learned = beta * s.per_new_alpha, least = spread<F>(s.least[i]);
  const F weight = spread<F>(1.0f) / (learned > least ? learned : least);
  const F residual = beta * s.unit[i];
  using Real = float;
  auto flagged = (residual > a.threshold) | ~TOPS_PRESENT(y);
  __builtin_memcpy(a.new_beta + row, &beta, n * 4);
  __builtin_memcpy(a.weight + row, &weight, n * 4);
  __builtin_memcpy(a.residual + row, &residual, n * 4);
  decltype(flagged) seen = {};
  __builtin_memcpy(&seen, bits + at, n * 4);
  seen = seen | (flagged & bit);
  __builtin_memcpy(bits + at, &seen, n * 4);
}

// Rollouts [first, last); scratch: 3 * sensors floats. The flags are 0 before.
template <class F>
static void update_rollouts(const UpdateArgs& a, int64_t first, int64_t last, float* scratch) {
  constexpr int64_t kLanes = sizeof(F) / sizeof(float);
  StepScalars<float> s{};
  s.least = scratch;
  s.bound = scratch + a.sensors;
  s.unit = scratch + 2 * a.sensors;
  set_scalars(a.r0, a.sensors, a.rule, a.alpha, a.rule.rho * a.alpha + 0.5, s);
  for (int64_t i = 0; i < a.sensors; ++i) {
    int32_t* const bits = a.flags + i / 32 * a.rollouts;
    const int32_t bit = static_cast<int32_t>(1u << (i % 32));
    for (int64_t at = first; at < last; at += kLanes)
      update_lanes<F>(a, s, i, at, static_cast<size_t>(last - at < kLanes ? last - at : kLanes),
                      bits, bit);
  }
}

template <class F, class Real>
static void filter_rollouts(const PrecisionArgs<Real>& a, int64_t first, int64_t last,
                            Real* scratch) {
  switch (a.states) {
    case 1:
      return filter_tile_of<F, Real, 1>(a, first, last, scratch);
    case 2:
      return filter_tile_of<F, Real, 2>(a, first, last, scratch);
    case 3:
      return filter_tile_of<F, Real, 3>(a, first, last, scratch);
    case 4:
      return filter_tile_of<F, Real, 4>(a, first, last, scratch);
    case 5:
      return filter_tile_of<F, Real, 5>(a, first, last, scratch);
    case 6:
      return filter_tile_of<F, Real, 6>(a, first, last, scratch);
    case 7:
      return filter_tile_of<F, Real, 7>(a, first, last, scratch);
    default:
      return filter_tile_of<F, Real, 8>(a, first, last, scratch);
  }
}
#undef TOPS_PRESENT
