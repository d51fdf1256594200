// Launcher of count_impostors; pointers are the device's, errors those of the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mmga {

// The raw arrays of one call; see reference.py for their meaning.
template <typename T>
struct Impostors {
  const T* values;
  int64_t row_stride;
  int64_t rows;
  int64_t width;
  const T* row_term;
  const T* column_term;
  int64_t metric;
  int64_t offset;
  const int64_t* ignored_start;
  const int64_t* ignored_item;
  const int32_t* row_camera;
  const int32_t* column_camera;
  bool cross_camera;
  const bool* removed;
  int64_t removed_stride;
  const bool* known;
  const double* edges;
  int64_t bins;
  int64_t* counts;
  double* nearest;
  int64_t* nearest_item;
};

template <typename T>
cudaError_t launch_count_impostors(const Impostors<T>& tile, cudaStream_t stream);

}  // namespace mmga
