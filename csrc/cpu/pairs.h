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

#include "certified.h"
#include "checks.h"
#include "products.h"
#include "ranking.h"

namespace mmga {
namespace {

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

}  // namespace
}  // namespace mmga
