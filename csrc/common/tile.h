// The raw arrays of the operators that read a tile of distances, without torch: shared by the CPU
// and CUDA kernels. mmga/ops/reference specifies the operators and names the arrays.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace mmga {

// A tile [rows, width], and which of its items each row counts.
template <typename T>
struct TileView {
  const T* values;
  int64_t row_stride;
  int64_t rows;
  int64_t width;
  const T* row_term;  // both terms null where the values are keys
  const T* column_term;
  int64_t metric;
  int64_t offset;  // item of the first column
  const int64_t* ignored_start;
  const int64_t* ignored_item;
  const int32_t* row_camera;  // both cameras null where none are excluded
  const int32_t* column_camera;
  const bool* removed;  // null: none
  int64_t removed_stride;
};

// Whether a match ranks before another, by key and then by item; NaN goes last.
template <typename T>
MMGA_HOST_DEVICE bool ranks_before(T key, int64_t item, T other_key, int64_t other_item) {
  const bool nan = key != key;
  const bool other_nan = other_key != other_key;
  if (nan || other_nan) return nan == other_nan ? item < other_item : other_nan;
  return key < other_key || (key == other_key && item < other_item);
}

// The matches of a tile's rows, to be sorted.
template <typename T>
struct MatchLists {
  const int64_t* start;
  int64_t* item;
  T* key;
  int64_t count;
};

// The matches of a tile's rows, and the counts of items that precede them.
template <typename T>
struct RankCounts {
  const int64_t* match_start;
  const int64_t* match_item;
  const T* match_key;
  int64_t* preceding;
  int64_t* tied;
  T* nearest;
  int64_t* mismatched;
};

// The histogram of a tile's keys, and the nearest item of each row.
struct Histogram {
  bool cross_camera;
  const bool* known;  // null: all
  const double* edges;
  int64_t bins;
  int64_t* counts;
  double* nearest;
  int64_t* nearest_item;
};

}  // namespace mmga
