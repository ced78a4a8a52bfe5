// SPDX-License-Identifier: Apache-2.0
// The precision filter over any number of rollouts, and noise for them.
#pragma once

#include "isa/precision.h"

namespace tops {

// All rollouts through all steps; their number need not be one of whole blocks.
void precision_filter(const PrecisionArgs<float>& args);

// Sets the flags too.
void precision_update(const UpdateArgs& args);

// One step of one rollout in float64.
void precision_step(const PrecisionArgs<double>& args);

// out [S][n]: standard normals keyed on (seed; rollout, step, sensor), of rollouts from `rollout`.
void sensor_noise(uint64_t seed, int64_t rollout, int64_t step, int64_t sensors, int64_t n,
                  float* out);

}  // namespace tops
