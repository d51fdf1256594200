// Work that threads take piece by piece: where other processes hold a thread up, the others do its
// pieces. In loops that have the threads to themselves (common/kernel_threads.h), they are of a
// pool of our own, in which nobody is waited for who has no piece; a region of OpenMP, which
// torch's pool runs, ends when all of its threads have been there. Elsewhere they are torch's:
// after a function of torch its threads spin, and would take the cores from others.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace mmga {

// Calls body(context) here and in up to `helpers` other threads, those that come before it is done
// here; returns when all have left, and rethrows what the first of them threw. (shares.cpp)
void run_with_helpers(int64_t helpers, void (*body)(void*), void* context);

// Returns how many threads work that the calling thread shares out may take. (shares.cpp)
int64_t kernel_threads();

// Returns whether the kernels have the threads to themselves. (shares.cpp)
bool threads_held();

namespace {

// Calls work(next) once in each of at most as many threads as there are pieces; next() returns the
// number of the next piece that nobody has, `pieces` or more if none is left.
template <typename Work>
void share(int64_t pieces, const Work& work) {
  const int64_t threads = std::min(kernel_threads(), pieces);
  std::atomic<int64_t> taken{0};
  const auto next = [&] { return taken.fetch_add(1, std::memory_order_relaxed); };
  if (!threads_held()) {
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(next); });
    return;
  }
  auto body = [&] {
    if (taken.load(std::memory_order_relaxed) < pieces) work(next);
  };
  run_with_helpers(
      threads - 1, [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
}

// Calls work(begin, end) for ranges that make up [0, count), several for each thread, which are
// multiples of `grain` but for the last: less than that is not worth another thread.
template <typename Work>
void share_ranges(int64_t count, int64_t grain, const Work& work) {
  constexpr int64_t kRangesPerThread = 4;
  const int64_t threads = kernel_threads();
  const int64_t even = (count + threads * kRangesPerThread - 1) / (threads * kRangesPerThread);
  const int64_t length = (std::max(even, grain) + grain - 1) / grain * grain;
  if (threads == 1 || count <= length) {
    if (count > 0) work(int64_t{0}, count);
    return;
  }
  const int64_t ranges = (count + length - 1) / length;
  share(ranges, [&](const auto& next) {
    for (int64_t range = next(); range < ranges; range = next()) {
      work(range * length, std::min(count, (range + 1) * length));
    }
  });
}

}  // namespace
}  // namespace mmga
