// A tile of distances and how its values become ranking keys, without torch: shared by kernels of
// both kinds.
#pragma once

#include <cstdint>

namespace mmga {

// How a tile's values become ranking keys: they are the keys, or inner products.
enum Metric : int64_t { kGiven = 0, kCosine = 1, kEuclidean = 2 };

// The raw arrays of one call of count_preceding; see reference.py for their meaning.
template <typename T>
struct Tile {
  const T* values;
  int64_t row_stride;
  int64_t rows;
  int64_t width;
  const T* row_term;
  const T* column_term;
  int64_t metric;
  int64_t offset;
  const int64_t* match_start;
  const int64_t* match_item;
  const T* match_key;
  const int64_t* ignored_start;
  const int64_t* ignored_item;
  const int32_t* row_camera;
  const int32_t* column_camera;
  const bool* removed;
  int64_t removed_stride;
  int64_t* preceding;
  int64_t* tied;
  T* nearest;
  int64_t* moved;
};

// The raw arrays of one call of count_impostors; see reference.py for their meaning.
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

}  // namespace mmga
