// Ranking keys on the device, rounded as on the CPU (compiled without fused multiply-add), and the
// counts of a row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/tile.h"
#include "cuda/launch.cuh"
#include "cuda/search.cuh"

namespace mmga {

template <typename T>
__device__ T key_at(const TileView<T>& tile, int64_t row, int64_t column) {
  const T value = tile.values[row * tile.row_stride + column];
  if (tile.metric == kGiven) return value;
  T key;
  make_key<T, T>(tile.metric, tile.row_term[row], tile.column_term[column], value, key);
  return key;
}

template <typename T>
__device__ bool is_ignored(const TileView<T>& tile, int64_t row, int64_t column) {
  return holds(tile.ignored_item, tile.ignored_start[row], tile.ignored_start[row + 1],
               tile.offset + column);
}

template <typename T>
__device__ bool is_removed(const TileView<T>& tile, int64_t row, int64_t column) {
  return tile.removed != nullptr && tile.removed[row * tile.removed_stride + column];
}

template <typename T>
__device__ bool has_same_camera(const TileView<T>& tile, int64_t row, int64_t column) {
  return tile.row_camera != nullptr && tile.row_camera[row] == tile.column_camera[column];
}

template <typename T>
__device__ bool is_counted(const TileView<T>& tile, int64_t row, int64_t column) {
  return !has_same_camera(tile, row, column) && !is_removed(tile, row, column) &&
         !is_ignored(tile, row, column);
}

// Adds running sums of bins to the counts of a row's matches. Called by the threads of one warp.
template <typename Bins>
__device__ void add_running_sums(const Bins& bins, int count, int64_t* preceding) {
  int64_t before = 0;
  for (int k = 0; k < count; k += kWarp) {
    const int mine = k + lane();
    const int64_t sum = warp_running_sum<int64_t>(mine < count ? bins[mine] : 0u);
    if (mine < count) preceding[mine] += before + sum;
    before += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
}

}  // namespace mmga
