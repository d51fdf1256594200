// Lists of pairs of rows, which several threads make, and the sums of these rows' terms.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "cpu/products.h"
#include "cpu/shares.h"

namespace mmga {
namespace {

// Pairs below which another thread costs more than it saves.
constexpr int64_t kPairGrain = 256;

// Results of threads, joined in the order of the ranges that threads took.
template <typename Found>
class OrderedChunks {
 public:
  // Calls list(begin, end, found) for ranges of [0, count), by several threads.
  template <typename List>
  void fill(int64_t count, int64_t grain, const List& list) {
    share_ranges(count, grain, [&](int64_t begin, int64_t end) {
      std::vector<Found> found;
      list(begin, end, found);
      const std::lock_guard<std::mutex> lock(mutex_);
      chunks_.emplace_back(begin, std::move(found));
    });
  }

  // Calls list(next, keep) in several threads: next() returns the beginning of the next range of
  // `grain` that nobody has, `count` or more if none is left; keep(begin, found) keeps its results.
  template <typename List>
  void share_out(int64_t count, int64_t grain, const List& list) {
    const auto keep = [this](int64_t begin, std::vector<Found> found) {
      const std::lock_guard<std::mutex> lock(mutex_);
      chunks_.emplace_back(begin, std::move(found));
    };
    share((count + grain - 1) / grain,
          [&](const auto& next) { list([&] { return next() * grain; }, keep); });
  }

  // Returns all results as rows of int32.
  Tensor joined(const Tensor& like) {
    std::sort(chunks_.begin(), chunks_.end(),
              [](const auto& one, const auto& other) { return one.first < other.first; });
    int64_t count = 0;
    for (const auto& chunk : chunks_) count += chunk.second.size();
    const Tensor result = new_tensor<int32_t>(like, {count, sizeof(Found) / sizeof(int32_t)});
    auto* to = static_cast<Found*>(result.mutable_data_ptr());
    for (const auto& chunk : chunks_) {
      to = std::copy(chunk.second.begin(), chunk.second.end(), to);
    }
    return result;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<int64_t, std::vector<Found>>> chunks_;
};

// sum_pairs for the pairs `begin` to `end` of rows of float32, or of 16-bit integers, which have
// products alone.
template <typename Pair, typename Use>
void sum_rows(const Tensor& x, const Tensor& y, int64_t metric, const Pair* pairs, int64_t begin,
              int64_t end, const Use& use) {
  const auto row = [pairs](int64_t p) { return pairs[p].row; };
  const auto column = [pairs](int64_t p) { return pairs[p].column; };
  const auto run = [&](auto term, auto zero) {
    using T = decltype(zero);
    sum_pairs<decltype(term)>(static_cast<const T*>(x.const_data_ptr()),
                              static_cast<const T*>(y.const_data_ptr()), x.size(1), begin, end, row,
                              column, use);
  };
  if (x.scalar_type() == ScalarType::Short) {
    run(Product{}, int16_t{0});
  } else if (metric == kEuclidean) {
    run(SquaredDifference{}, 0.0F);
  } else {
    run(Product{}, 0.0F);
  }
}

}  // namespace
}  // namespace mmga
