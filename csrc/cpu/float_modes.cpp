// The control words of a pool's threads. A thread inherits that of the thread that starts it, so
// that a pool may flush subnormal numbers to zero although its caller does not, and the reverse.
#include "common/float_modes.h"

#include <torch/csrc/stable/ops.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace mmga {

#if defined(__x86_64__)
namespace {
constexpr uint32_t kFlushes = 0x8040;  // results (FTZ) and operands (DAZ)
}

std::vector<uint32_t> exchange_float_modes(const std::vector<uint32_t>& words) {
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<uint32_t> former(threads);
  // As many pieces as threads: each thread of the pool gets one.
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      former[thread] = _mm_getcsr();
      const bool given = thread < static_cast<int64_t>(words.size());
      _mm_setcsr(given ? words[thread] : former[thread] & ~kFlushes);
    }
  });
  return former;
}
#else
std::vector<uint32_t> exchange_float_modes(const std::vector<uint32_t>&) { return {}; }
#endif

}  // namespace mmga
