// Sums in float64 on the CPU, in one order on every machine. Bound by one read of the
// rows. mmga/ops/reference specifies every function.

#include "args/distance.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdint>

#include "common/dispatch.h"
#include "cpu/products.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Elements that are widened to float64 at a time; a multiple of kAccumulators.
constexpr int64_t kWidened = 256;

MMGA_INLINE double widen(float value) { return value; }
MMGA_INLINE double widen(uint16_t half) { return half_to_float(half); }

template <typename T>
MMGA_VECTOR_CLONES double squared_norm(const T* row, int64_t width) {
  double sum[kAccumulators] = {};
  double block[kWidened];
  for (int64_t start = 0; start < width; start += kWidened) {
    const int64_t length = std::min(kWidened, width - start);
    for (int64_t i = 0; i < length; ++i) block[i] = widen(row[start + i]);
    const int64_t whole = length / kAccumulators * kAccumulators;
    for (int64_t i = 0; i < whole; i += kAccumulators) {
      for (int64_t l = 0; l < kAccumulators; ++l) sum[l] += block[i + l] * block[i + l];
    }
    for (int64_t i = whole; i < length; ++i) sum[i - whole] += block[i] * block[i];
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

struct Cpu {
  template <typename T>
  static void squared_norms(const Tensor&, const MatrixView<T>& x, double* norms) {
    share_ranges(x.rows, rows_per_thread(x.width), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        norms[row] = squared_norm(x.row(row), x.width);
      }
    });
  }

  static void pair_sums(const Tensor&, const PairSums& pairs, double* sums) {
    const auto run = [&](auto term) {
      share_ranges(pairs.count, 64, [&](int64_t begin, int64_t end) {
        sum_pairs<decltype(term)>(
            pairs.x, pairs.y, pairs.width, begin, end, [&](int64_t p) { return pairs.rows[p]; },
            [&](int64_t p) { return pairs.columns[p]; },
            [&](int64_t p, double sum) { sums[p] = sum; });
      });
    };
    pairs.differences ? run(SquaredDifference{}) : run(Product{});
  }
};

}  // namespace
}  // namespace mmga

STABLE_TORCH_LIBRARY_IMPL(mmga, CPU, m) {
  m.impl("squared_norms", TORCH_BOX(&mmga::squared_norms<mmga::Cpu>));
  m.impl("pair_sums", TORCH_BOX(&mmga::pair_sums<mmga::Cpu>));
}
