// What the kernels of certified ranks and of certified neighbours share: pairs that a tile leaves
// open, and their keys from the rows themselves.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "host.h"
#include "products.h"
#include "ranking.h"

namespace mmga {
namespace {

constexpr int64_t kGrain = 1 << 15;
// Pairs that one thread should have before another is worth waking.
constexpr int64_t kPairGrain = 256;

// What threads found, in the order of what they were given.
template <typename Found>
class Pieces {
 public:
  void add(int64_t begin, std::vector<Found>&& found) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pieces_.emplace_back(begin, std::move(found));
  }

  Tensor joined(const Tensor& like) {
    std::sort(pieces_.begin(), pieces_.end(),
              [](const auto& one, const auto& other) { return one.first < other.first; });
    int64_t count = 0;
    for (const auto& piece : pieces_) count += piece.second.size();
    constexpr int64_t kNumbers = sizeof(Found) / sizeof(int32_t);
    Tensor result = torch::stable::new_empty(like, {count, kNumbers}, ScalarType::Int);
    auto* to = static_cast<Found*>(result.mutable_data_ptr());
    for (const auto& piece : pieces_) {
      to = std::copy(piece.second.begin(), piece.second.end(), to);
    }
    return result;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<int64_t, std::vector<Found>>> pieces_;
};

// Rows to be multiplied; returns whether they are of integers.
inline bool check_rows(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1),
                  "x and y must be [R, K] and [W, K]");
  const bool integers = x.scalar_type() == ScalarType::Short;
  check(x, integers ? ScalarType::Short : ScalarType::Float, -1, "x");
  check(y, integers ? ScalarType::Short : ScalarType::Float, -1, "y");
  return integers;
}

// multiply_pairs for rows of either kind.
template <typename Row, typename Column, typename Use>
void multiply_rows(const Tensor& x, const Tensor& y, int64_t begin, int64_t end, const Row& row,
                   const Column& column, const Use& use) {
  using detail::pointer;
  if (x.scalar_type() == ScalarType::Short) {
    multiply_pairs(pointer<int16_t>(x), pointer<int16_t>(y), x.size(1), begin, end, row, column,
                   use);
  } else {
    multiply_pairs(pointer<float>(x), pointer<float>(y), x.size(1), begin, end, row, column, use);
  }
}

// How the inner product of two rows, of float32 or of integers, becomes a key in float64.
struct PairKeys {
  const double* row_term;
  const double* column_term;
  int64_t metric;
  bool integers;

  double operator()(int64_t row, int64_t column, double product) const {
    const double one = row_term[row], other = column_term[column];
    if (integers) product *= kIntegerUnit * kIntegerUnit;
    if (metric == kEuclidean) {
      if (integers) product *= std::sqrt(one * other);
      const double key = (one + other) - 2 * product;
      return key < 0 ? 0 : key;
    }
    if (integers) return 1 - product;
    const double norms = one * other;
    return norms > 0 ? 1 - product / norms : 1;
  }
};

}  // namespace
}  // namespace mmga
