// Launchers of the ranking kernels; pointers are the device's, errors those of the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tile.h"

namespace mmga {

// The matches of the rows of a tile, to be read from it and sorted.
template <typename T>
struct MatchLists {
  const T* values;  // null: the keys are there already
  int64_t row_stride;
  int64_t width;
  const T* row_term;
  const T* column_term;
  int64_t metric;
  int64_t rows;
  const int64_t* start;
  int64_t* item;
  T* key;
  int64_t* sorted_item;  // as long as all matches
  T* sorted_key;
};

template <typename T>
cudaError_t launch_count_preceding(const Tile<T>& tile, cudaStream_t stream);

template <typename T>
cudaError_t launch_sort_matches(const MatchLists<T>& lists, cudaStream_t stream);

}  // namespace mmga
