// Ranking keys on the device, rounded as on the CPU: compiled without fused multiply-add.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tile.h"

namespace mmga {

template <typename T>
__device__ T ranking_key(T value, const T* row_term, const T* column_term, int64_t metric,
                         int64_t row, int64_t column) {
  if (metric == kCosine) return 1 - (value * row_term[row]) * column_term[column];
  if (metric == kEuclidean) {
    const T key = (row_term[row] + column_term[column]) - 2 * value;
    return key < 0 ? T(0) : key;  // NaN stays NaN
  }
  return value;
}

// Whether an ascending list holds an item.
__device__ inline bool holds(const int64_t* list, int64_t low, int64_t end, int64_t item) {
  int64_t high = end;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (list[middle] < item) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < end && list[low] == item;
}

}  // namespace mmga
