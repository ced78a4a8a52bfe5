// SPDX-License-Identifier: Apache-2.0
#include "base/threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tops {
namespace {

constexpr int kMaxThreads = 256;
// About 5 microseconds; handing work to a spinning thread and waiting for it takes 1 to 2.
constexpr int64_t kLeastWork = 10'000;
// A layer takes tens of microseconds; sleeping and waking takes about as long, so a worker looks
// for the next one this often first.
constexpr int kSpins = 4000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 1; i <= workers; ++i) threads_.emplace_back([this, i] { work(i); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }
  int workers() const { return static_cast<int>(threads_.size()); }

  void run(int64_t tasks, int use, const std::function<void(int64_t, int)>& body) {
    error_ = nullptr;
    body_ = &body;
    tasks_ = tasks;
    use_ = use;
    next_.store(0);
    running_.store(workers());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    drain(0);
    while (running_.load(std::memory_order_acquire) != 0) pause();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void drain(int worker) {
    if (worker >= use_) return;
    try {
      for (int64_t i = next_.fetch_add(1); i < tasks_; i = next_.fetch_add(1)) (*body_)(i, worker);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(tasks_);
    }
  }

  void work(int worker) {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i)
        pause();
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
      }
      ++seen;
      if (stop_.load()) return;
      drain(worker);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> next_{0};
  std::atomic<int> running_{0};
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t tasks_ = 0;
  int use_ = 0;
  std::exception_ptr error_;
};

// Behind a pointer that is never destroyed: at exit the workers simply end with the process, and
// after fork the child forgets a pool whose threads it does not have.
struct Shared {
  std::mutex busy;
  std::unique_ptr<Pool> pool;
};
std::atomic<Shared*> shared{nullptr};
std::once_flag once;

Shared& state() {
  std::call_once(once, [] {
    shared.store(new Shared);
    pthread_atfork(nullptr, nullptr, [] { shared.store(new Shared); });
  });
  return *shared.load();
}

thread_local int override_threads = 0;
thread_local bool inside = false;

int default_threads() {
  static const int n = [] {
    if (const char* env = std::getenv("TERNARY_OPS_NUM_THREADS")) {
      const int v = std::atoi(env);
      if (v > 0) return v < kMaxThreads ? v : kMaxThreads;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    return 1;
  }();
  return n;
}

}  // namespace

int num_threads() { return override_threads > 0 ? override_threads : default_threads(); }

void set_num_threads(int n) { override_threads = n < 0 ? 0 : n < kMaxThreads ? n : kMaxThreads; }

void parallel_for(int64_t tasks, int64_t work, const std::function<void(int64_t, int)>& body) {
  int use = num_threads();
  if (tasks < use) use = static_cast<int>(tasks);
  Shared* s = nullptr;
  if (use > 1 && work >= kLeastWork && !inside) {
    s = &state();
    if (!s->busy.try_lock()) s = nullptr;
  }
  if (!s) {
    for (int64_t i = 0; i < tasks; ++i) body(i, 0);
    return;
  }
  std::lock_guard<std::mutex> lock(s->busy, std::adopt_lock);
  if (!s->pool || s->pool->workers() < use - 1) s->pool.reset(new Pool(use - 1));
  inside = true;
  struct Leave {
    ~Leave() { inside = false; }
  } leave;
  s->pool->run(tasks, use, body);
}

}  // namespace tops
