// Work that threads take piece by piece: one that is held up, by another process on its core, takes
// fewer pieces, and the others do not wait for it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace mmga {
namespace {

// Calls work(next) once in each of as many threads as have a piece; next() returns the number of
// the next piece that nobody has, `pieces` or more if none is left.
template <typename Work>
void share(int64_t pieces, const Work& work) {
  std::atomic<int64_t> taken{0};
  const auto next = [&] { return taken.fetch_add(1, std::memory_order_relaxed); };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), pieces);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(next); });
}

}  // namespace
}  // namespace mmga
