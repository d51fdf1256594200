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

template <typename T>
__device__ T key_at(const Tile<T>& tile, int64_t row, int64_t column) {
  return ranking_key(tile.values[row * tile.row_stride + column], tile.row_term, tile.column_term,
                     tile.metric, row, column);
}

// Whether an item of a tile is none that its row leaves out.
template <typename T>
__device__ bool is_counted(const Tile<T>& tile, int64_t row, int64_t column) {
  if (tile.row_camera != nullptr && tile.row_camera[row] == tile.column_camera[column]) {
    return false;
  }
  if (tile.removed != nullptr && tile.removed[row * tile.removed_stride + column]) return false;
  return !holds(tile.ignored_item, tile.ignored_start[row], tile.ignored_start[row + 1],
                tile.offset + column);
}

}  // namespace mmga
