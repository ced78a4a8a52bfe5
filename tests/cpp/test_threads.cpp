// SPDX-License-Identifier: Apache-2.0
// The thread pool: each task once, exceptions, callers that share it, fork.
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "support.h"

using namespace tops;
using namespace tops::test;

namespace {

constexpr int64_t kMuch = int64_t{1} << 40;  // worth several threads

void test_threads() {
  for (const int threads : {1, 2, 3, 7, 64}) {
    set_num_threads(threads);
    for (int round = 0; round < 50; ++round) {
      std::vector<int> hits(1000, 0);
      parallel_for(1000, kMuch, [&](int64_t i, int) {
        ++hits[static_cast<size_t>(i)];
        parallel_for(2, kMuch, [](int64_t, int) {});  // nested: runs here
      });
      bool once = true;
      for (const int h : hits) once = once && h == 1;
      check(once, "each task once with " + std::to_string(threads) + " threads");
    }
  }
  bool thrown = false;
  try {
    parallel_for(100, kMuch, [](int64_t i, int) {
      if (i == 50) throw Error(ErrorKind::kUnsupportedShape, "from a task");
    });
  } catch (const Error&) {
    thrown = true;
  }
  check(thrown, "an exception of a task arrives");
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(16, 0);
  for (size_t t = 0; t < sums.size(); ++t)
    callers.emplace_back([&sums, t] {
      set_num_threads(3);
      for (int round = 0; round < 200; ++round) {
        std::vector<int64_t> part(64, 0);
        parallel_for(64, kMuch, [&](int64_t i, int) { part[static_cast<size_t>(i)] = i; });
        for (const int64_t p : part) sums[t] += p;
      }
    });
  for (std::thread& c : callers) c.join();
  for (const int64_t s : sums) check(s == 200 * 2016, "sixteen callers share the pool");
  set_num_threads(3);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a child that waits for threads it does not have dies here
    int64_t sum = 0;
    std::vector<int64_t> part(100, 0);
    parallel_for(100, kMuch, [&](int64_t i, int) { part[static_cast<size_t>(i)] = i; });
    for (const int64_t p : part) sum += p;
    _exit(sum == 4950 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the pool works after fork");
}

}  // namespace

int main() {
  test_threads();
  return report("test_threads");
}
