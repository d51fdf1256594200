// The raw arrays of neighbour search and of sums in float64, without torch: shared by the CPU and
// CUDA kernels.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace mmga {

// A candidate: the bits of a float >= 0, which order like the number, above the index.
MMGA_HOST_DEVICE MMGA_INLINE int64_t pack(float distance, int64_t index) {
  return static_cast<int64_t>(bit_cast<int32_t>(distance)) << 32 | index;
}
MMGA_HOST_DEVICE MMGA_INLINE float distance_of(int64_t candidate) {
  return bit_cast<float>(static_cast<int32_t>(candidate >> 32));
}

// A tile of inner products between items and others, and the candidate lists that it updates.
struct TileUpdate {
  int64_t* candidates;  // [N, slots]
  int32_t* counts;      // [N]
  float* thresholds;    // [N]
  float* maxima;        // [N]
  int64_t slots;
  int64_t k;
  const float* products;
  int64_t item_step;  // from one item's products to the next one's
  int64_t other_step;
  int64_t items;
  int64_t others;
  const float* item_term;
  const float* other_term;
  int64_t first_item;
  int64_t first_other;
  bool cosine;
  bool symmetric;  // each pair with item < other is inserted for both, other pairs are ignored
  float* kept;     // distances of the items before `kept_items` to those from there on, or null
  int64_t kept_items;
  int64_t kept_step;
};

// The candidate lists of items, [items, slots], and how many each holds.
struct CandidateLists {
  const int64_t* candidates;
  const int32_t* counts;
  int64_t items, slots;
};

// A tile of inner products that become squared distances in place.
struct ProductTile {
  float* values;
  int64_t stride, rows, columns;
  const float* row_term;
  const float* column_term;
  bool cosine;
};

// A matrix whose rows are `stride` elements apart.
template <typename T>
struct MatrixView {
  const T* values;
  int64_t stride, rows, width;

  MMGA_HOST_DEVICE const T* row(int64_t index) const { return values + index * stride; }
};

// Pairs of rows whose products, or squared differences, are summed.
struct PairSums {
  const float* x;
  const float* y;
  int64_t width;
  const int64_t* rows;
  const int64_t* columns;
  int64_t count;
  bool differences;
};

}  // namespace mmga
