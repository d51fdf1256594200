// Building CSR arrays whose sizes are known only afterwards, and small sets in ascending order.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mmga {

// Asks for large pages under fresh memory that will be written once: a fault for each 4 KiB costs
// more than writing them.
inline void expect_large(void* memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  constexpr size_t kWorthIt = 4 << 20;
  if (bytes >= kWorthIt) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

// A set of integers below n that hands its members out in ascending order: a bitmap under a bitmap
// of its words. Inserting costs two writes, draining the members plus n / 4096 words.
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

// Rows of unknown length, filled chunk by chunk from several threads and then joined. Each chunk
// is freed as soon as it is copied, so that the peak stays near one copy of the result.
class ChunkedRows {
 public:
  ChunkedRows(int64_t rows, int64_t rows_per_chunk, bool with_values)
      : rows_(rows),
        rows_per_chunk_(rows_per_chunk),
        counts_(rows, 0),
        columns_((rows + rows_per_chunk - 1) / rows_per_chunk),
        values_(with_values ? columns_.size() : 0) {}

  int64_t chunks() const { return static_cast<int64_t>(columns_.size()); }
  int64_t first_row(int64_t chunk) const { return std::min(chunk * rows_per_chunk_, rows_); }
  std::vector<int32_t>& columns(int64_t chunk) { return columns_[chunk]; }
  std::vector<double>& values(int64_t chunk) { return values_[chunk]; }
  void set_count(int64_t row, int64_t count) { counts_[row] = count; }

  torch::stable::Tensor offsets(const torch::stable::Tensor& like) {
    auto result = torch::stable::new_empty(like, {rows_ + 1}, torch::headeronly::ScalarType::Long);
    auto* out = result.mutable_data_ptr<int64_t>();
    out[0] = 0;
    for (int64_t i = 0; i < rows_; ++i) out[i + 1] = out[i] + counts_[i];
    starts_.resize(columns_.size() + 1);
    for (int64_t c = 0; c <= chunks(); ++c) starts_[c] = out[first_row(c)];
    return result;
  }

  // Both after offsets().
  torch::stable::Tensor gather_columns(const torch::stable::Tensor& like) {
    auto result =
        torch::stable::new_empty(like, {starts_.back()}, torch::headeronly::ScalarType::Int);
    gather(columns_, result.mutable_data_ptr<int32_t>());
    return result;
  }
  torch::stable::Tensor gather_values(const torch::stable::Tensor& like) {
    auto result =
        torch::stable::new_empty(like, {starts_.back()}, torch::headeronly::ScalarType::Double);
    gather(values_, result.mutable_data_ptr<double>());
    return result;
  }

 private:
  template <typename T>
  void gather(std::vector<std::vector<T>>& parts, T* out) {
    torch::stable::parallel_for(0, chunks(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        if (!parts[c].empty()) {
          std::memcpy(out + starts_[c], parts[c].data(), parts[c].size() * sizeof(T));
        }
        std::vector<T>().swap(parts[c]);
      }
    });
  }

  int64_t rows_, rows_per_chunk_;
  std::vector<int64_t> counts_, starts_;
  std::vector<std::vector<int32_t>> columns_;
  std::vector<std::vector<double>> values_;
};

}  // namespace mmga
