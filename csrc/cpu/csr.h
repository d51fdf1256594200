// Sparse rows whose lengths are known only afterwards, and sets that are drained in ascending
// order.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "cpu/shares.h"

namespace mmga {

// Asks for large pages under fresh memory that will be written once: a fault for each 4 KiB costs
// more than writing them.
inline void expect_large([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  constexpr size_t kWorthIt = 4 << 20;
  if (bytes >= kWorthIt) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// A set of integers below n that is drained in ascending order: a bitmap under a bitmap of its
// words. Inserting costs two writes, draining the members plus n / 4096 words.
class AscendingSet {
 public:
  explicit AscendingSet(int64_t n) : words_((n + 63) / 64, 0), blocks_((n + 4095) / 4096, 0) {}

  void insert(int32_t item) {
    words_[item >> 6] |= uint64_t{1} << (item & 63);
    blocks_[item >> 12] |= uint64_t{1} << ((item >> 6) & 63);
  }

  // Calls take(item) for each member in ascending order and leaves the set empty.
  template <typename Take>
  void drain(Take&& take) {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      for (uint64_t block = blocks_[b]; block != 0; block &= block - 1) {
        const size_t w = b * 64 + __builtin_ctzll(block);
        for (uint64_t word = words_[w]; word != 0; word &= word - 1) {
          take(static_cast<int32_t>(w * 64 + __builtin_ctzll(word)));
        }
        words_[w] = 0;
      }
      blocks_[b] = 0;
    }
  }

 private:
  std::vector<uint64_t> words_, blocks_;
};

// Rows of unknown length, made chunk by chunk by several threads and then joined. Each chunk is
// freed as soon as it is copied, so that the peak stays near one copy of the result.
class ChunkedRows {
 public:
  ChunkedRows(int64_t rows, int64_t rows_per_chunk)
      : rows_(rows),
        rows_per_chunk_(rows_per_chunk),
        counts_(rows, 0),
        columns_((rows + rows_per_chunk - 1) / rows_per_chunk),
        values_(columns_.size()) {}

  // Makes all rows: append(scratch, row, columns, values) adds a row's entries to the vectors, with
  // the thread's own make_scratch().
  template <typename MakeScratch, typename Append>
  void fill(const MakeScratch& make_scratch, const Append& append) {
    share(chunks(), [&](const auto& next) {
      auto scratch = make_scratch();
      for (int64_t c = next(); c < chunks(); c = next()) {
        // They grow here: the ends of neighbouring chunks share a cache line.
        std::vector<int32_t> columns;
        std::vector<double> values;
        for (int64_t row = first_row(c); row < first_row(c + 1); ++row) {
          const size_t before = columns.size();
          append(scratch, row, columns, values);
          counts_[row] = columns.size() - before;
        }
        columns_[c] = std::move(columns);
        values_[c] = std::move(values);
      }
    });
  }

  // The joined arrays: offsets first.
  Tensor offsets(const Tensor& like) {
    const Tensor result = new_tensor<int64_t>(like, {rows_ + 1});
    auto* out = data_of<int64_t>(result);
    out[0] = 0;
    for (int64_t i = 0; i < rows_; ++i) out[i + 1] = out[i] + counts_[i];
    starts_.resize(columns_.size() + 1);
    for (int64_t c = 0; c <= chunks(); ++c) starts_[c] = out[first_row(c)];
    return result;
  }
  Tensor columns(const Tensor& like) { return joined(columns_, like); }
  Tensor values(const Tensor& like) { return joined(values_, like); }

 private:
  int64_t chunks() const { return static_cast<int64_t>(columns_.size()); }
  int64_t first_row(int64_t chunk) const { return std::min(chunk * rows_per_chunk_, rows_); }

  template <typename T>
  Tensor joined(std::vector<std::vector<T>>& parts, const Tensor& like) {
    const Tensor result = new_tensor<T>(like, {starts_.back()});
    T* out = data_of<T>(result);
    share_ranges(chunks(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        std::copy(parts[c].begin(), parts[c].end(), out + starts_[c]);
        std::vector<T>().swap(parts[c]);
      }
    });
    return result;
  }

  int64_t rows_, rows_per_chunk_;
  std::vector<int64_t> counts_, starts_;
  std::vector<std::vector<int32_t>> columns_;
  std::vector<std::vector<double>> values_;
};

}  // namespace mmga
