// Searching ascending lists.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

// Returns the first place from `low` to `high` whose value is not below `value`.
template <typename T>
__device__ int64_t first_not_below(const T* list, int64_t low, int64_t high, T value) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (list[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Returns the first place from `low` to `high` whose value is above `value`.
template <typename T>
__device__ int64_t first_above(const T* list, int64_t low, int64_t high, T value) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (value < list[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <typename T>
__device__ bool holds(const T* list, int64_t low, int64_t high, T value) {
  const int64_t place = first_not_below(list, low, high, value);
  return place < high && list[place] == value;
}

}  // namespace mmga
