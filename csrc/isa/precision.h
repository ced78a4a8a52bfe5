// SPDX-License-Identifier: Apache-2.0
// Kernels of the precision filter: a Kalman filter that learns the precision of each sensor
// (variational Bayes, Gamma precisions). Lanes are rollouts; the same bits on every instruction
// set. Beside the kernel table, since nothing of a program calls them.
#pragma once

#include <cstdint>

namespace tops {

constexpr int64_t kFilterStates = 8;  // D at most
// Rollouts of a block: one vector of the kernel, on every instruction set.
constexpr int64_t kFilterLanes = 16;

// Learning of the precisions: beta' = rho * beta + ((y - yhat)^2 + v) / 2, at most alpha * R0 /
// floor; the weight alpha / beta' is cap / R0 at most.
// sweeps: of one step, each of which estimates the state again, with the weights of the one before.
struct PrecisionRule {
  double rho, floor, cap;
  int64_t sweeps;
};

// Of D states, S sensors, B rollouts and T steps; rollouts innermost. P holds its lower triangle,
// row by row.
template <class Real>
struct PrecisionArgs {
  int64_t rollouts, steps, states, sensors;
  const Real *a, *q, *c, *r0;  // [D][D], [D][D], [S][D], [S]
  PrecisionRule rule;
  double alpha;             // shape of the precisions before the first step
  bool learn;               // false: beta stays
  const Real* drive;        // [T][D][B], added to the predicted mean; or null
  const Real* y;            // [T][S][B]; one that is not finite, or of 1e15 or more, is missing
  Real *m, *p, *beta;       // [D][B], [D (D + 1) / 2][B], [S][B]: in and out
  Real *means, *residuals;  // [T][D][B], [T][S][B] beta / (alpha R0); or null
};

// Rollouts [first, last); scratch: of filter_scratch Reals.
template <class Real>
using PrecisionKernel = void (*)(const PrecisionArgs<Real>&, int64_t first, int64_t last,
                                 Real* scratch);

// The update of precisions alone: everything [S][B] but flags [ceil(S / 32)][B], bit s % 32 of
// sensor s.
struct UpdateArgs {
  int64_t rollouts, sensors;
  const float* r0;
  PrecisionRule rule;
  double alpha;
  float threshold;
  const float *y, *expected, *variance, *beta;
  float *new_beta, *weight, *residual;
  int32_t* flags;
};

// n standard normals, of rollouts from `rollout` on, of each of at most 4 sensors, from 4 * group
// on, at one step; row j of out begins at out + j * stride.
using NoiseKernel = void (*)(uint64_t seed, int64_t rollout, int64_t step, int64_t group,
                             int64_t sensors, int64_t n, float* out, int64_t stride);

struct PrecisionKernels {
  PrecisionKernel<float> filter;
  void (*update)(const UpdateArgs&, int64_t first, int64_t last, float* scratch);
  NoiseKernel noise;
};

// Blocks that go through time together: their state stays in the first-level cache, and each row
// of readings is read some cache lines at a time.
int64_t filter_tile(int64_t states, int64_t sensors);
int64_t filter_scratch(int64_t states, int64_t sensors);

// Of the instruction set in force on this thread.
const PrecisionKernels& precision_kernels();
// One rollout at a time in float64.
PrecisionKernel<double> precise_filter();

}  // namespace tops
