// The host side of kernels that write sparse rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/host.h"
#include "cuda/sparse_rows.cuh"

namespace mmga {

// Tables for as many warps as there are rows, memory and use for them on the card.
class Tables {
 public:
  Tables(const Tensor& like, int64_t rows, int64_t columns, bool with_sums)
      : warps_(warps_for(rows, table_bytes(columns, with_sums))),
        memory_(torch::stable::new_zeros(like, {warps_ * table_bytes(columns, with_sums) / 8},
                                         ScalarType::Long)) {}
  Scratch scratch() const { return {data_of<uint64_t>(memory_), warps_}; }

 private:
  static constexpr int64_t kMostBytes = int64_t{1} << 30;  // of all tables together
  // 16 a multiprocessor of the largest card: more tables cost more time to clear than they save.
  static constexpr int64_t kMostWarps = 2112;
  static constexpr int64_t kWarpsOfBlock = 4;

  static int64_t warps_for(int64_t rows, int64_t bytes) {
    const int64_t wanted = std::min({rows, kMostWarps, kMostBytes / std::max<int64_t>(1, bytes)});
    return (std::max<int64_t>(1, wanted) + kWarpsOfBlock - 1) / kWarpsOfBlock * kWarpsOfBlock;
  }

  int64_t warps_;
  Tensor memory_;
};

struct NewRows {
  Tensor offsets, columns, values;
};

// Makes rows whose lengths `run` finds in a first launch.
template <typename Run>
NewRows make_rows(const Device& device, const Tensor& like, int64_t rows, bool with_values,
                  const Run& run) {
  const Tensor offsets = new_tensor<int64_t>(like, {rows + 1});
  auto* lengths = data_of<int64_t>(offsets);
  STD_CUDA_CHECK(run(RowsOut{lengths, nullptr, nullptr, nullptr}));
  STD_CUDA_CHECK(launch_offsets(lengths, rows, device.stream()));
  const int64_t total = device.read(lengths + rows);
  const Tensor columns = new_tensor<int32_t>(like, {total});
  const Tensor values = new_tensor<double>(like, {with_values ? total : 0});
  if (total > 0) {
    STD_CUDA_CHECK(run(RowsOut{nullptr, lengths, data_of<int32_t>(columns),
                               with_values ? data_of<double>(values) : nullptr}));
  }
  return {offsets, columns, values};
}

}  // namespace mmga
