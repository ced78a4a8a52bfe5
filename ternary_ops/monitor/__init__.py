# SPDX-License-Identifier: Apache-2.0
"""Fault tolerance: estimation and control with sensors that fail. NumPy and the native core.

f = monitor.FaultTolerantFilter(A, B, Q, C, R)
estimate = f.step(y, u)                       # mean, weights, residual, flags
monitor.simulate(monitor.plants.Cruise(), faults=[monitor.faults.Bias(1, 50, size=-10.0)])
"""

from ternary_ops.monitor import faults, methods, plants
from ternary_ops.monitor.filter import FAULT, MISSING, Estimate, FaultTolerantFilter
from ternary_ops.monitor.rollouts import RolloutFilter, sensor_noise
from ternary_ops.monitor.simulation import Simulation, simulate
from ternary_ops.monitor.threshold import residual_threshold
from ternary_ops.reference.precision import PrecisionRule

__all__ = [
    "FAULT",
    "MISSING",
    "Estimate",
    "FaultTolerantFilter",
    "PrecisionRule",
    "RolloutFilter",
    "Simulation",
    "faults",
    "methods",
    "plants",
    "residual_threshold",
    "sensor_noise",
    "simulate",
]
