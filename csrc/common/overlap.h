// Sparse rows and their Jaccard distances, without torch: shared by the CPU and CUDA kernels.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace mmga {

// Sparse rows: the entries offsets[i] to offsets[i + 1] are row i's.
struct Csr {
  const int64_t* offsets;
  const int32_t* columns;
  const double* values;  // null: sets, without weights
  int64_t rows, entries;
};

// The first `length` neighbours of each item, of [items, width].
struct NeighbourLists {
  const int32_t* index;
  int64_t items, width, length;
};

// The rows that jaccard_rows gives, and which of their entries.
struct JaccardRows {
  const int64_t* chosen;
  int64_t count;
  double least;  // overlap
  bool upper;    // none before a row's own item
};

// The rule by which mix_distances combines distances.
struct Mix {
  const double* maxima;  // null: distances are scaled
  int64_t first;
  double lambda;
  int64_t power;
  double scale;
};

// Returns the distance d' of mix_distances: divided by the row's maximum where there is one, or
// scaled.
MMGA_HOST_DEVICE MMGA_INLINE double original_distance(double d, double divisor, double factor,
                                                      int64_t power) {
  if (!(divisor > 0)) return d * factor;
  return (power == 2 ? d * d : d) / divisor;
}

MMGA_HOST_DEVICE MMGA_INLINE double jaccard_distance(double overlap) {
  const double distance = 1.0 - overlap / (2.0 - overlap);
  return distance > 0.0 ? distance : 0.0;
}

// Returns the least overlap whose distance is at most `limit` < 1: every step of jaccard_distance
// is monotonic in floating point too, so that comparing overlaps decides as comparing distances
// would.
inline double least_overlap(double limit) {
  double low = 0.0, high = 1.0;  // jaccard_distance(high) <= limit < jaccard_distance(low)
  for (;;) {
    const double middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) return high;
    (jaccard_distance(middle) <= limit ? high : low) = middle;
  }
}

}  // namespace mmga
