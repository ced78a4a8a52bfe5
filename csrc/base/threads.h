// SPDX-License-Identifier: Apache-2.0
// The thread pool of the core.
#pragma once

#include <cstdint>
#include <functional>

namespace tops {

// Threads in force on the calling thread: its override, else TERNARY_OPS_NUM_THREADS, else the CPUs
// it may run on.
int num_threads();
// Overrides for the calling thread; 0 clears.
void set_num_threads(int n);

// Calls body(i, worker) for every i in [0, tasks), in any order, worker in [0, num_threads()). work
// is the whole call's cost, roughly, in vector operations (half a nanosecond): a small one runs on
// the calling thread, for which waking another would take longer. Returns when all are done; an
// exception of a body is rethrown. The pool starts at the first call that needs it and is rebuilt
// after fork. A call from inside a body, or while another thread holds the pool, runs on the
// calling thread alone.
void parallel_for(int64_t tasks, int64_t work, const std::function<void(int64_t, int)>& body);

}  // namespace tops
